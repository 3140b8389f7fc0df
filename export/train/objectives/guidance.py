"""Heads of Frambicus's text decoder that are shown where to look while it learns.

Whether a thing is there (is there a cup?) is told by whether its name finds itself among what was found, which the
answers alone did not teach in thousands of steps: a coin was as good. Shown where the same token stands, a head does it
after 140 steps, and answers follow. Likewise for the two things that a question compares, and for the thing that
a caption is about to name.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import nn

from edgemm.export.frambicus.attention import rotate

WORDS, THINGS = 1, 2
"""Layers: whose cross-attention finds a question's words (its first head); whose own attention finds what a question
is about (its first two heads), and whose cross-attention what a caption names next (its first head)."""

_BEFORE = 4  # tokens of a phrase before its noun: a comma or an "and", a number or an article, a colour


class Watched:
    """What one attention is called with."""

    def __init__(self, attention: Any) -> None:
        self._attention = attention
        self._given: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._hook = self._attention.register_forward_pre_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _keep(self, module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._given = {"x": given[0], **named}

    def scores(self, head: int) -> torch.Tensor:
        """Log-probabilities [B, S, T] of where one head looks."""
        given, attention = self._given, self._attention
        width = attention.q_proj.out_features // attention.heads
        part = slice(head * width, (head + 1) * width)
        query = nn.functional.linear(given["x"], attention.q_proj.weight[part])
        source = given.get("source")
        key = nn.functional.linear(given["x"] if source is None else source, attention.k_proj.weight[part])
        if source is not None and given.get("rows") is not None:
            key = key.index_select(0, given["rows"])
        if given.get("rotation") is not None:
            query, key = (rotate(x[:, None], given["rotation"])[:, 0] for x in (query, key))
        scores = query @ key.transpose(1, 2) * width**-0.5 + given["bias"][:, 0]
        return scores.float().log_softmax(-1)


class Watch:
    """The attentions of a text decoder that are guided; of none, nothing."""

    def __init__(self, text: Any | None) -> None:
        self._stack = ExitStack()
        self._text = text
        self.words = self.things = self.phrases = Watched(None)

    def __enter__(self) -> Self:
        if self._text is not None:
            layers = self._text.layers
            words, things = (layers[min(each, len(layers) - 1)] for each in (WORDS, THINGS))
            own = words.cross, things.own, things.cross
            self.words, self.things, self.phrases = (self._stack.enter_context(Watched(each)) for each in own)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def words(watched: Watched, standing: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """The loss of where the words of questions, those `asked` [B, S], look in a memory in which they are `standing`
    [B, S, T], or else at its end; words that stand there and words that do not count alike.
    """
    lost = ~standing.any(-1)
    there = standing.clone()
    there[..., -1] |= lost
    losses = _missed(watched.scores(0), there)
    found = [losses[asked & lost], losses[asked & ~lost]]
    return torch.stack([own.mean() for own in found if len(own)]).sum()


def things(watched: Watched, found: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """The loss of where the last tokens of questions look among their own: one head at the first thing that is
    `found` [B, S] in the memory, the other at the last. 0 where there is no such question.
    """
    named = found & asked
    some = named.any(1)
    if not some.any():
        return torch.zeros((), device=asked.device)
    places = torch.arange(asked.shape[1], device=asked.device)
    last = torch.where(asked, places, 0).amax(1)
    losses = []
    for head, wanted in enumerate((_first_run(named), _first_run(named.flip(1)).flip(1))):
        looks = watched.scores(head)[torch.arange(len(last), device=last.device), last]
        losses.append(_missed(looks[some], wanted[some]).mean())
    return torch.stack(losses).mean()


def phrases(watched: Watched, there: torch.Tensor, guided: torch.Tensor) -> torch.Tensor:
    """The loss of where the tokens `guided` [B, S] of captions look: at what they are about to name, which is `there`
    [B, S, T]. 0 where no token is guided.
    """
    losses = _missed(watched.scores(0), there)[guided]
    return losses.mean() if len(losses) else losses.sum()


def named_next(ids: Sequence[int], names: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
    """The label that each position of a sentence is about to name or names, −1 where none.

    `ids` is the sentence, −100 before it; `names` are labels with the tokens of their names, several for one label.
    """
    about = [-1] * len(ids)
    free = next((i for i, token in enumerate(ids) if token >= 0), len(ids))
    place = free
    longest = sorted(names, key=lambda name: -len(name[1]))
    while place < len(ids):
        own = next(((n, t) for n, t in longest if t and list(ids[place : place + len(t)]) == list(t)), None)
        if own is None:
            place += 1
            continue
        label, tokens = own
        end = place + len(tokens)
        for i in range(max(free, place - _BEFORE), end):
            about[i - 1] = label  # what stands at i is said at the position before
        free = place = end
    return about


def _first_run(marked: torch.Tensor) -> torch.Tensor:
    """Of marked [B, S] the first run of neighbours in each row."""
    starts = marked & ~nn.functional.pad(marked, (1, 0))[:, :-1]
    return marked & (starts.cumsum(1) == 1)


def _missed(looks: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """−log of the probability [...] of looking [..., T] at any of the places that are `there`; 0 where none is."""
    missed = -looks.masked_fill(~there, -torch.inf).logsumexp(-1)
    return torch.where(there.any(-1), missed, 0.0)

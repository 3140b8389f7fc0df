"""A decoder with its embedding table: token ids in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.runtimes.base import Decoder, Value, as_numpy

Embed = Callable[[NDArray[np.int64]], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a decoder call takes beside embeddings. `positions` [B, S] or [3, B, S] (None: counted on).

    The `extras` of a prompt are biases [B, 1, S, S].
    """

    positions: NDArray[np.int64] | None = None
    extras: Mapping[str, Value] = field(default_factory=dict)

    def behind(self, first: int) -> Inputs:
        """What remains of a prompt's inputs for the positions from `first` on."""
        positions = None if self.positions is None else self.positions[..., first:]
        return Inputs(positions, {name: as_numpy(bias)[:, :, first:] for name, bias in self.extras.items()})


# Positions in the state, rows → what the next single position takes.
Follow = Callable[[int, int], Inputs]


def count_on(_past: int, _batch: int) -> Inputs:
    """Most families': positions follow from the length, and nothing else is asked for."""
    return Inputs()


@dataclass(frozen=True, eq=False)
class Language:
    """A decoder that was prefilled. `follow` is the family's rule for the positions after the prompt.

    Every step's alignment [B, heads, 1, T'] is put into `heard`, where it is a list (see `Decoder.alignment`).
    """

    decoder: Decoder
    embed: Embed
    follow: Follow = count_on
    heard: list[NDArray[Any]] | None = None

    def step(self, tokens: Sequence[int]) -> NDArray[Any]:
        """Append one token per row; return logits [B, V] of what comes next."""
        ids = np.array(tokens, np.int64)[:, None]
        more = self.follow(self.decoder.length, len(ids))
        logits = self.decoder.step(self.embed(ids), positions=more.positions, extras=more.extras)
        if self.heard is not None:
            self.heard.append(self.decoder.alignment())
        return logits

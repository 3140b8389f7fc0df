"""Concept tokens: what the vision tower's own head believes to see, spelled for the text decoder.

A class is spelled token by token: each of the first J tokens of its name is one vector of the memory that knows the
token, its number, the whole name (by the mean of its tokens, so that tokens of one name find each other), the score,
and the cell in which the class was strongest. A mean over the name alone would have to be unmixed again, which works
for names seen in training only; copying one token after the other works for any name (arXiv 1603.06393).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

_FAINTEST = 1e-6
_LOUD = 4.0  # rows of the table have a fifth of the length of what is added to them
_LOG_SCALE = 0.1


class Concepts(nn.Module):
    """The k most probable classes as memory [B, k · J, D].

    `names` int64 [classes, J] are the tokens of the classes' names, −1 after the last; it travels with the weights.
    """

    names: torch.Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        text = config.text_config
        classes, width = len(config.vision_config.id2label), text.hidden_size
        self.count = min(text.concepts, classes)
        self.register_buffer("names", torch.full((classes, text.concept_tokens), -1))
        self.token, self.name = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.token.gain = self.name.gain = _LOUD
        self.order = nn.Parameter(torch.zeros(text.concept_tokens, width))
        self.score = nn.Linear(2, width)
        self.norm = nn.LayerNorm(width)

    def draw(self) -> None:
        """Without a tokenizer there are no names; a drawn model has none until `name_classes`."""
        init.constant_(self.names, -1)

    def name_classes(self, ids: Sequence[Sequence[int]]) -> None:
        """Set the tokens of the classes' names, in the order of the classes; longer names are cut."""
        for row, tokens in zip(self.names, ids, strict=True):
            row.fill_(-1)
            cut = torch.tensor(tokens[: len(row)], dtype=row.dtype)
            row[: len(cut)] = cut

    def best(self, probabilities: torch.Tensor, frame_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, F, cells + 1, classes] → classes [B, k], best first, their log-probabilities [B, k, 2] and cells [B, k].

        Ranked by the product of a class's probability in its best cell and in the whole picture: a cell alone is sure
        of nonsense (a photograph of a cat has a shower cap in one), and the whole alone loses what is small.
        """
        shown = probabilities * frame_mask[:, :, None, None].to(probabilities.dtype)
        logs = shown.amax(1).clamp(min=_FAINTEST).log()
        best, cells = logs[:, :-1].max(1)
        both = torch.stack((best, logs[:, -1]), dim=-1)
        classes = both.sum(-1).topk(self.count, dim=-1).indices
        return classes, both.gather(1, classes[..., None].expand(-1, -1, 2)), cells.gather(1, classes)

    def forward(
        self, probabilities: torch.Tensor, frame_mask: torch.Tensor, where: torch.Tensor, table: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """→ tokens [B, k·J, D] and their mask [B, k·J].

        probabilities as `VisionTower.cell_probabilities` gives them, [B, F, cells + 1, classes], `where` [cells, D] the
        embeddings of the cells' places, `table` [vocabulary, D] the embeddings of tokens.
        """
        classes, scores, cells = self.best(probabilities, frame_mask)
        ids = self.names[classes]
        known = ids >= 0
        embeds = table[ids.clamp(min=0)] * known[..., None]
        mean = embeds.sum(2) / known.sum(2).clamp(min=1)[..., None]
        around = where[cells] + self.name(mean) + self.score(scores.to(table.dtype) * _LOG_SCALE)
        tokens = self.norm(self.token(embeds) + self.order + around[:, :, None])
        mask = known & (frame_mask.amax(1) != 0)[:, None, None]
        return tokens.flatten(1, 2), mask.flatten(1).to(frame_mask.dtype)

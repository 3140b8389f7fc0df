"""Concept tokens: what the vision tower's own head believes to see, spelled for the text decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgemm.export.frambicus.spelling import Speller

_FAINTEST = 1e-6
_LOG_SCALE = 0.1


class Concepts(nn.Module):
    """The k most probable classes as memory [B, k · J, D]: name, score, and the cell where each was strongest."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        text = config.text_config
        classes, width = len(config.vision_config.id2label), text.hidden_size
        self.count = min(text.concepts, classes)
        self.speller = Speller(classes, text.concept_tokens, width)
        self.score = nn.Linear(2, width)

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
        self,
        probabilities: torch.Tensor,
        frame_mask: torch.Tensor,
        where: torch.Tensor,
        table: torch.Tensor,
        dealt: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """→ tokens [B, k·J, D], their mask [B, k·J], and the token of the table that each is spelled of [B, k·J], −1
        where there is none.

        probabilities as `VisionTower.cell_probabilities` gives them, [B, F, cells + 1, classes], `where` [cells, D] the
        embeddings of the cells' places, `table` [vocabulary, D] the embeddings of tokens. `dealt` [B, classes] says
        which class's name each class goes by.
        """
        classes, scores, cells = self.best(probabilities, frame_mask)
        if dealt is not None:
            classes = dealt.gather(1, classes)
        known = self.known(scores.to(table.dtype), cells, where)
        tokens, mask = self.speller(classes, known, frame_mask.amax(1, keepdim=True).expand_as(classes), table)
        return tokens, mask.to(frame_mask.dtype), self.speller.names[classes].flatten(1)

    def known(self, scores: torch.Tensor, cells: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """What is known of each class beside its name, [B, k, D]: of log-probabilities [B, k, 2] and cells [B, k]."""
        y: torch.Tensor = where[cells] + self.score(scores * _LOG_SCALE)
        return y

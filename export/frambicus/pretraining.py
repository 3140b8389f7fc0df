"""What the connector and the decoder can learn before any task: hidden cells, hidden words, pictures with texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edgemm.export.frambicus.embedding import contrastive_loss
from edgemm.export.frambicus.modeling import FrambicusCore
from edgemm.export.frambicus.outputs import FrambicusOutput, Sight


class FrambicusForPreTraining(FrambicusCore):
    """Each objective runs where its inputs are given, alone or jointly; `loss` is their weighted sum.

    | objective | inputs beside the pictures | predicts |
    |---|---|---|
    | `masked_grid`, of images and videos | `hidden` bool [B, F, h, w] | the tower's features of hidden cells |
    | `masked_language` | `masked_ids`, `masked_labels` [B, S] | the words that stood there, seen from both sides |
    | `contrastive` | `text_ids`, `text_mask` | which text belongs to which picture |
    | `caption` | `input_ids`, `attention_mask`, `labels` | the text, word by word |
    """

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        grids: Sequence[torch.Tensor] | None = None,
        frame_times_s: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
        masked_ids: torch.Tensor | None = None,
        masked_mask: torch.Tensor | None = None,
        masked_labels: torch.Tensor | None = None,
        text_ids: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        weights: Mapping[str, float] | None = None,
        tokens: torch.Tensor | None = None,
        **_: Any,
    ) -> FrambicusOutput:
        """`loss_dict` has the objectives that ran, unweighted. `weights` by name, 1 where it says nothing.

        With `hidden` the other objectives too see only what is not hidden. `tokens` as `loss_of` has it.
        """
        sees = pixel_values is not None or grids is not None
        sight = self.see(pixel_values, grids, frame_times_s, frame_mask, hidden) if sees else None
        losses: dict[str, torch.Tensor] = {}
        if sight is not None and hidden is not None:
            losses["masked_grid"] = self._grid_loss(sight, hidden, frame_times_s)
        if masked_ids is not None and masked_labels is not None:
            losses["masked_language"] = self._word_loss(sight, masked_ids, masked_mask, masked_labels, tokens)
        if sight is not None and text_ids is not None:
            image = self.embedder.of_image(*sight.seen)
            text = self.embed_texts(text_ids, text_mask)
            losses["contrastive"] = contrastive_loss(self.embedder.logits(image, text))
        if input_ids is not None and labels is not None:
            states = self.speak(input_ids, self.remember(sight, None, len(input_ids)), attention_mask)
            losses["caption"] = self.loss_of(states[:, :-1], labels[:, 1:], tokens)
        total = sum((weights or {}).get(name, 1.0) * loss for name, loss in losses.items())
        return FrambicusOutput(loss=total if losses else None, loss_dict=losses)

    def _grid_loss(self, sight: Sight, hidden: torch.Tensor, times_s: torch.Tensor | None) -> torch.Tensor:
        grid = sight.grids[-1]
        tokens = self.connector.tokens
        when = tokens.when(self._before_newest(times_s, sight.frame_mask))
        height, width = grid.shape[-2:]
        where = tokens.where(height, width, grid.device)
        guessed = self.reconstructor(sight.visual, sight.visual_mask, (when[:, :, None] + where).flatten(1, 2))
        shown = hidden & (sight.frame_mask != 0)[:, :, None, None]
        loss: torch.Tensor = self.reconstructor.loss(guessed, grid, shown)
        return loss

    def _word_loss(
        self,
        sight: Sight | None,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        labels: torch.Tensor,
        tokens: torch.Tensor | None,
    ) -> torch.Tensor:
        memory = self.remember(sight, None, len(ids))
        return self.loss_of(self.speak(ids, memory, mask, causal=False), labels, tokens)


def random_cells(
    shape: tuple[int, int, int, int], share: float = 0.5, generator: torch.Generator | None = None
) -> torch.Tensor:
    """bool [B, F, h, w] with `share` of each frame's cells hidden, at random."""
    batch, frames, height, width = shape
    order = torch.rand(batch, frames, height * width, generator=generator).argsort(-1).argsort(-1)
    return (order < round(share * height * width)).unflatten(-1, (height, width))

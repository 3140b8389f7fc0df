"""What Frambicus's steps and classes return."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers.utils import ModelOutput

from edgemm.export.frambicus.detector import Found
from edgemm.export.frambicus.vision import Grids


@dataclass
class FrambicusOutput(ModelOutput):
    """What a forward pass gives. Shapes: B pictures or clips, S tokens, T of memory.

    `loss` []; `logits` [B, S, vocabulary], or [B, queries, labels + 1] of the detector; `last_hidden_state` [B, S, D];
    `memory` [B, T, D] and `memory_mask` [B, T]; `pred_boxes` [B, queries, 4]; `image_embeds` and `text_embeds`
    [B, embedding]; `loss_dict` the parts of a loss.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    memory: torch.Tensor | None = None
    memory_mask: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class Sight:
    """What one run of the vision half gives, whatever the task.

    `grids` as in `vision.Grids`; `visual` [B, L, D], `finds` [B, N, D] and `concepts` [B, K, D] with their masks;
    `spelled` int64 [B, N + K] is the token that each find and concept is spelled of, −1 where there is none;
    `labels` int64 [B, N / J] are the finds' labels, likewise;
    `frame_mask` [B, F]; `probabilities` [B, F, cells + 1, classes]; `found` of B · F frames.
    """

    grids: Grids
    visual: torch.Tensor
    visual_mask: torch.Tensor
    finds: torch.Tensor
    find_mask: torch.Tensor
    concepts: torch.Tensor
    concept_mask: torch.Tensor
    spelled: torch.Tensor
    labels: torch.Tensor
    frame_mask: torch.Tensor
    probabilities: torch.Tensor
    found: Found

    def of(self, rows: torch.Tensor) -> Sight:
        """Some of the pictures or clips."""
        picked = {f.name: getattr(self, f.name) for f in fields(self)}
        frames = torch.arange(len(self.found.logits), device=rows.device).unflatten(0, self.frame_mask.shape)[rows]
        moved: dict[str, Any] = {
            name: [grid[rows] for grid in value] if name == "grids" else value.of(frames.flatten()) if name == "found"
            else value[rows]
            for name, value in picked.items()
        }  # fmt: skip
        return Sight(**moved)

    @property
    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens, finds and concepts as one [B, L + N + K, D], and the mask."""
        tokens = torch.cat((self.visual, self.finds, self.concepts), dim=1)
        return tokens, torch.cat((self.visual_mask, self.find_mask, self.concept_mask), dim=1)


@dataclass(frozen=True)
class Memory:
    """What the decoder attends to: states [B, T, D] and mask [B, T]."""

    states: torch.Tensor
    mask: torch.Tensor

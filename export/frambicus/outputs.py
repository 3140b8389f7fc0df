"""What Frambicus's steps and classes return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

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

    `grids` as in `vision.Grids`; `visual` [B, L, D] and `concepts` [B, K, D] with their masks; `frame_mask` [B, F];
    `probabilities` [B, F, cells + 1, classes].
    """

    grids: Grids
    visual: torch.Tensor
    visual_mask: torch.Tensor
    concepts: torch.Tensor
    concept_mask: torch.Tensor
    frame_mask: torch.Tensor
    probabilities: torch.Tensor

    @property
    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens and concepts as one [B, L + K, D], and the mask."""
        tokens = torch.cat((self.visual, self.concepts), dim=1)
        return tokens, torch.cat((self.visual_mask, self.concept_mask), dim=1)


@dataclass(frozen=True)
class Memory:
    """What the decoder attends to: states [B, T, D] and mask [B, T]."""

    states: torch.Tensor
    mask: torch.Tensor

"""Pictures and texts in one space, for ranking: the contrastive half of the model (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import initialization as init

from edgemm.export.frambicus.attention import bias_of

_FIRST_SCALE = math.log(1 / 0.07)
_LARGEST_SCALE = math.log(100.0)


class Embedder(nn.Module):
    """Memory of a picture, or the decoder's last state of a text → a vector of length 1, [B, E]."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.pool = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        self.image, self.text = nn.Linear(width, size, bias=False), nn.Linear(width, size, bias=False)
        self.scale = nn.Parameter(torch.zeros(()))

    def draw(self) -> None:
        """The temperature of CLIP's paper."""
        init.constant_(self.scale, _FIRST_SCALE)

    def of_image(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """tokens [B, T, D] that one learned query weighs, mask [B, T] → [B, E]."""
        scores = (tokens * self.pool).sum(-1) / math.sqrt(tokens.shape[-1]) + bias_of(mask, tokens.dtype)[:, 0, 0]
        # With an axis of tokens the product is traced as all others are, and its weight stored in blocks too.
        pooled = (scores.softmax(-1)[..., None] * tokens).sum(1, keepdim=True)
        return nn.functional.normalize(self.image(self.norm(pooled))[:, 0], dim=-1)

    def of_text(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """states [B, S, D], the last token that is no padding (the task token) speaks for the text → [B, E]."""
        places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = torch.where(attention_mask != 0, places, 0).amax(1)
        picked = states[torch.arange(states.shape[0], device=states.device), last]
        return nn.functional.normalize(self.text(picked[:, None])[:, 0], dim=-1)

    def logits(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Similarities [images, texts], scaled by the learned temperature."""
        return image @ text.T * self.scale.clamp(max=_LARGEST_SCALE).exp()


def contrastive_loss(logits: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy of a square [B, B] whose diagonal belongs together."""
    own = torch.arange(len(logits), device=logits.device)
    return (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)) / 2

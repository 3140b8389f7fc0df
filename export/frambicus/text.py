"""The text decoder: a small causal language model with cross-attention to the memory in every layer.

The speech decoder is left alone: a recogniser is a weak language model, and what it hears must not change. The decoder
reads and writes through the speech model's own table, which stays frozen, between two linear layers of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache

from edgemm.export.frambicus.attention import (
    Attention,
    FeedForward,
    Rotation,
    bias_of,
    causal_bias_of,
    rotation_of,
)


class TextLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward.

    Without Flamingo's tanh gates that start at zero (arXiv 2204.14198): they let a finished language model come to see
    without harm. This one is drawn at random, and with gates only its last layer ever opened: it looked once, so that
    questions of two steps (what is left of the red cup?) stayed unanswered.
    """

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        text = config.text_config
        width, heads = text.hidden_size, text.num_attention_heads
        self.own_norm, self.cross_norm, self.inner_norm = (nn.LayerNorm(width, bias=False) for _ in range(3))
        self.own = Attention(config, width, heads, layer, text.dropout)
        self.cross = Attention(config, width, heads, layer, text.dropout)
        self.inner = FeedForward(width, text.intermediate_size, gated=True)
        self.dropout = nn.Dropout(text.dropout)

    def forward(
        self,
        x: torch.Tensor,
        memory: torch.Tensor,
        bias: torch.Tensor,
        memory_bias: torch.Tensor,
        rotation: Rotation,
        cache: EncoderDecoderCache | None,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """x [B, S, D], memory [B, T, D], bias [B, 1, S, P+S], memory_bias [B, 1, 1, T] → [B, S, D]."""
        x = x + self.dropout(self.own(self.own_norm(x), bias=bias, rotation=rotation, cache=cache))
        seen = self.cross(self.cross_norm(x), source=memory, bias=memory_bias, cache=cache, rows=rows)
        x = x + self.dropout(seen)
        y: torch.Tensor = x + self.dropout(self.inner(self.inner_norm(x)))
        return y


class TextDecoder(nn.Module):
    """inputs_embeds [B, S, D] → states [B, S, D] that the shared table turns into logits."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        text = config.text_config
        self.head_width = text.hidden_size // text.num_attention_heads
        self.theta = text.rope_theta
        self.into = nn.Linear(text.hidden_size, text.hidden_size)
        self.layers = nn.ModuleList(TextLayer(config, i) for i in range(text.num_hidden_layers))
        self.norm = nn.LayerNorm(text.hidden_size, bias=False)
        self.out = nn.Linear(text.hidden_size, text.hidden_size)
        self.out.gain = 0.1  # rows of the shared table are long: full states would shout at first

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        memory: torch.Tensor,
        memory_mask: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        *,
        causal: bool = True,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`attention_mask` [B, P+S] is 0 at padding, `memory_mask` [B, T] where there is no memory.

        `rows` [B] says which memory is whose, where several sequences share one.

        Without `causal` every position sees all others: masked language modelling. Positions count what is not
        padding, so that padding may be on either side.
        """
        new, dtype = inputs_embeds.shape[1], inputs_embeds.dtype
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new:]
        rotation = rotation_of(position_ids, self.head_width, self.theta, dtype)
        bias = causal_bias_of(attention_mask, new, dtype) if causal else bias_of(attention_mask, dtype)
        memory_bias = bias_of(memory_mask if rows is None else memory_mask[rows], dtype)
        x = self.into(inputs_embeds)
        for layer in self.layers:
            x = layer(x, memory, bias, memory_bias, rotation, cache, rows)
        y: torch.Tensor = self.out(self.norm(x))
        return y

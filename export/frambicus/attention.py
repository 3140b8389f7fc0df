"""Attention of the project's own parts, through transformers' interface: "sdpa" (memory-efficient), "eager", others.

Export swaps the function for its plain one, as in any other family (`edgemm.export.tracing`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines [B, S, head dimension]."""


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [B, H, S, d], key and value [B, H, T, d], additive mask → [B, S, H, d] and the weights [B, H, S, T]."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class Attention(nn.Module):
    """Multi-head attention of `hidden_states` [B, S, D] to `source` [B, T, D], or to themselves where there is none.

    `layer` is its place in a cache. `config` only names the attention function and the dropout.
    """

    def __init__(self, config: Any, width: int, heads: int, layer: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.config, self.heads, self.layer, self.dropout = config, heads, layer, dropout
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        source: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        rotation: Rotation | None = None,
        cache: EncoderDecoderCache | None = None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[B, S, D]. `bias` [B, 1, S or 1, T] is added to the scores; `rotation` turns queries and keys.

        With `rows` [B] several sequences attend to one source: keys and values are computed once for all of them.
        """
        query = self._split(self.q_proj(hidden_states))
        if source is not None:
            key, value = self._seen(source, cache)
            if rows is not None:
                key, value = key.index_select(0, rows), value.index_select(0, rows)
        else:
            query, key, value = self._own(hidden_states, query, rotation, cache)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.dropout if self.training else 0.0
        scaling = query.shape[-1] ** -0.5
        found, _ = attend(self, query, key, value, bias, dropout=dropout, scaling=scaling, is_causal=False)
        states: torch.Tensor = self.o_proj(found.flatten(2))
        return states

    def _seen(self, source: torch.Tensor, cache: EncoderDecoderCache | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of another sequence, computed once where there is a cache."""
        if cache is None:
            return self._split(self.k_proj(source)), self._split(self.v_proj(source))
        cross: Any = cache.cross_attention_cache
        if not cache.is_updated.get(self.layer):
            cross.update(self._split(self.k_proj(source)), self._split(self.v_proj(source)), self.layer)
            cache.is_updated[self.layer] = True
        return cross.layers[self.layer].keys, cross.layers[self.layer].values

    def _own(
        self, x: torch.Tensor, query: torch.Tensor, rotation: Rotation | None, cache: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        key, value = self._split(self.k_proj(x)), self._split(self.v_proj(x))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is not None:
            key, value = cache.self_attention_cache.update(key, value, self.layer)
        return query, key, value

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def rotation_of(position_ids: torch.Tensor, width: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Rotary positions (arXiv 2104.09864) of position_ids [B, S] for heads of `width`."""
    steps = torch.arange(0, width, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids[..., None].float() * theta ** (-steps / width)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().to(dtype), both.sin().to(dtype)


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """x [B, H, S, d] turned by its positions."""
    cos, sin = (part.unsqueeze(1) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def bias_of(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The additive mask [B, 1, 1, T] of a mask [B, T] that is 0 where nothing may be seen.

    The smallest finite number stands for "not seen", so that a row that may see nothing stays finite.
    """
    seen = mask[:, None, None, :] != 0
    return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)


def causal_bias_of(mask: torch.Tensor, new: int, dtype: torch.dtype) -> torch.Tensor:
    """The additive mask [B, 1, S, P+S] of `new` positions after P others; `mask` [B, P+S] is 0 at padding."""
    places = torch.arange(mask.shape[1], device=mask.device)
    before = places[None, :] <= places[mask.shape[1] - new :, None]
    seen = before[None, None] & (mask[:, None, None, :] != 0)
    return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)


class FeedForward(nn.Module):
    """Two layers with GELU, or three with a SiLU gate (arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int, *, gated: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner * (2 if gated else 1))
        self.down = nn.Linear(inner, width)
        self.gated = gated

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., D] → [..., D]."""
        x = self.up(x)
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
            x = nn.functional.silu(gate) * x
        else:
            x = nn.functional.gelu(x)
        y: torch.Tensor = self.down(x)
        return y


def fourier(x: torch.Tensor, bands: int, longest: float) -> torch.Tensor:
    """Sines and cosines of x [...] at the periods longest, longest / 2, … → [..., 2 · bands]."""
    periods = longest * 0.5 ** torch.arange(bands, device=x.device, dtype=torch.float32)
    angles = x[..., None].float() * (2 * torch.pi / periods)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)

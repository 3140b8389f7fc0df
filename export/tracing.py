"""What makes transformers' modules traceable as one graph for prefill and decode.

Two things are swapped while a module is traced: its attention function, so that attention comes out as one plain
subgraph (matmul, add, softmax, matmul), and its cache, whose tensors are the graph's inputs and outputs.
Everything else is the original module.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from edgemm.export.attention_op import attention

ATTENTION = "edgemm"
Heads = tuple[tuple[int, int], ...]
"""(layer, head) pairs."""

_WATCHED: ContextVar[dict[int, torch.Tensor | None] | None] = ContextVar("watched", default=None)


def plain_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention with an additive mask.

    query [B, H, S, D], key and value [B, Hkv, T, D], mask [B, 1, S, T] or None → [B, S, H, D]. `softcap` bounds the
    scores by a hyperbolic tangent (Gemma 2).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    watched = _WATCHED.get()
    watching_this = watched is not None and id(module) in watched
    if not watching_this and softcap is None and (attention_mask is None or attention_mask.dtype == query.dtype):
        return attention(query, key, value, attention_mask, scale), None
    heads, kv_heads = query.shape[1], key.shape[1]
    if kv_heads != heads:
        # One gather by constant rows: repeating would compute shapes in every layer.
        rows = torch.tensor([h * kv_heads // heads for h in range(heads)])
        key, value = key.index_select(1, rows), value.index_select(1, rows)
    scores = torch.matmul(query * scale, key.transpose(-1, -2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if watched is not None and watching_this:
        watched[id(module)] = weights
    return torch.matmul(weights, value).transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


@contextmanager
def watching(modules: Sequence[torch.nn.Module]) -> Iterator[dict[int, torch.Tensor | None]]:
    """The weights [B, H, S, T] with which `modules` attend inside the block, by `id(module)`.

    No attribute and no hook: the exporter takes neither, and a copied module would keep the original's.
    """
    watched: dict[int, torch.Tensor | None] = dict.fromkeys(map(id, modules))
    token = _WATCHED.set(watched)
    try:
        yield watched
    finally:
        _WATCHED.reset(token)


def chosen_heads(weights: Sequence[torch.Tensor | None], heads: Heads) -> torch.Tensor:
    """`heads` of the layers' attention weights [B, H, S, T], as [B, len(heads), S, T]."""
    picked = []
    for layer, pairs in itertools.groupby(heads, key=lambda pair: pair[0]):
        found = weights[layer]
        assert found is not None, f"layer {layer} did not attend through plain_attention"
        picked.append(found.index_select(1, torch.tensor([head for _, head in pairs])))
    return torch.cat(picked, dim=1)


AttentionInterface.register(ATTENTION, plain_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)


@contextmanager
def traceable(model: PreTrainedModel) -> Iterator[None]:
    """Run the block with the plain attention in every module of `model`."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [(c, c._attn_implementation) for c in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation_internal = ATTENTION
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def causal_bias(attention_mask: torch.Tensor, new: int, dtype: torch.dtype) -> torch.Tensor:
    """The additive mask [B, 1, S, P+S] of `new` positions appended to P earlier ones.

    attention_mask [B, P+S] is 0 at padding. The smallest finite number stands for "not seen", so that a
    row of nothing but padding stays finite.
    """
    total = attention_mask.shape[1]
    keys = torch.arange(total)[None, :]
    queries = torch.arange(new)[:, None] + (total - new)
    seen = torch.logical_and((keys <= queries)[None, None], attention_mask[:, None, None, :] != 0)
    return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)


def padding_bias(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The additive mask [B, 1, 1, S] of a bidirectional encoder; attention_mask [B, S] is 0 at padding."""
    return torch.where(attention_mask[:, None, None, :] != 0, 0.0, torch.finfo(dtype).min).to(dtype)


def cache_of(tensors: Sequence[torch.Tensor]) -> DynamicCache:
    """A transformers cache over key, value, key, value, … of consecutive layers."""
    cache = DynamicCache()
    cache.layers = []
    for key, value in zip(tensors[::2], tensors[1::2], strict=True):
        layer = DynamicLayer()
        layer.keys, layer.values = key, value
        layer.dtype, layer.device, layer.is_initialized = key.dtype, key.device, True
        cache.layers.append(layer)
    return cache


def cache_argument(module: torch.nn.Module, cache: Cache) -> dict[str, Cache]:
    """`cache` by the name that a layer or model takes it by: "past_key_values", since transformers 5.24 "cache"."""
    name = "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"
    return {name: cache}


def tensors_of(cache: DynamicCache) -> list[torch.Tensor]:
    """The inverse of `cache_of`."""
    return [t for layer in cache.layers for t in (layer.keys, layer.values)]


def encoder_decoder_cache(past: Sequence[torch.Tensor], cross: Sequence[torch.Tensor]) -> EncoderDecoderCache:
    """A cache whose cross-attention half is filled already."""
    cache = EncoderDecoderCache(cache_of(past), cache_of(cross))
    cache.is_updated = dict.fromkeys(range(len(cross) // 2), True)
    return cache


def use_plain_attention(model: torch.nn.Module) -> None:
    """Make every module of `model` attend through `plain_attention`."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            config._attn_implementation_internal = ATTENTION

"""The graph contract as plans: ports, ranges and sizes of the components that families share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from edgemm.export.graph import Feeds, GraphPlan, Port, Sizes, StatePlan
from edgemm.export.tracing import causal_bias
from edgemm.export.wrappers import EmbedTokens, layered_names

BATCH = (1, 1, 8)


@dataclass(frozen=True)
class DecoderShape:
    """What a decoder's ports depend on."""

    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    cross_heads: int = 0
    cross_max: int = 0
    cross_dim: int = 0


@dataclass(frozen=True)
class DecoderExtras:
    """Where a decoder differs from the plain one.

    `position_axes` 3 is M-RoPE's `position_ids` [3, B, S]. `biases` are additive masks [B, 1, S, P+S] that a host
    function builds, in place of `attention_mask` (families whose mask is not causal). `deepstack` is the number of
    `deepstack.{i}` inputs [B, S, hidden]. `cross_mask` adds `cross_mask` [B, T']. `alignment` adds the output of that
    name, [B, alignment, S, T']: the cross-attention weights of so many heads.
    """

    position_axes: int = 0
    biases: tuple[str, ...] = ()
    deepstack: int = 0
    cross_mask: bool = False
    alignment: int = 0


def embed_plan(embedding: nn.Embedding, scale: float = 1.0) -> GraphPlan:
    """`embed_tokens`: input_ids [B, S] → inputs_embeds [B, S, hidden]."""
    vocabulary, hidden = embedding.weight.shape

    def make(sizes: Sizes, rng: torch.Generator) -> Feeds:
        shape = (sizes["batch"], sizes["new"])
        return {"input_ids": torch.randint(0, vocabulary, shape, generator=rng)}

    module = EmbedTokens(embedding, scale)
    return GraphPlan(
        role="embed_tokens",
        module=module,
        build=module.graph,
        inputs=(Port("input_ids", torch.int64, ("batch", "new")),),
        outputs=(Port("inputs_embeds", torch.float32, ("batch", "new", hidden)),),
        ranges={"batch": BATCH, "new": (1, 1, 65536)},
        trace={"batch": 2, "new": 3},
        checks=({"batch": 1, "new": 1}, {"batch": 1, "new": 7}, {"batch": 3, "new": 2}),
        make=make,
        treatment="weight_only",
    )


def _sizes(batch: int, past: int, new: int, picks: int, cross: int) -> dict[str, int]:
    sizes = {"batch": batch, "past": past, "new": new, "total": past + new, "picks": picks}
    return sizes | ({"source": cross} if cross else {})


def decoder_plan(module: nn.Module, shape: DecoderShape, extras: DecoderExtras | None = None) -> GraphPlan:
    """`decoder`, with cross-attention inputs where `shape.cross_heads` is set."""
    more = extras or DecoderExtras()
    past = layered_names("past_key_values", shape.layers)
    present = layered_names("present", shape.layers)
    cross = layered_names("cross", shape.layers) if shape.cross_heads else []
    floats = torch.float32
    kv = ("batch", shape.kv_heads, "past", shape.head_dim)
    kv_out = ("batch", shape.kv_heads, "total", shape.head_dim)
    source = ("batch", shape.cross_heads, "source", shape.cross_dim or shape.head_dim)
    n = 5 if cross else 0
    return GraphPlan(
        role="decoder",
        module=module,
        inputs=(
            Port("inputs_embeds", floats, ("batch", "new", shape.hidden)),
            *_mask_ports(more),
            Port("position_ids", torch.int64, (*((3,) if more.position_axes else ()), "batch", "new")),
            *(Port(f"deepstack.{i}", floats, ("batch", "new", shape.hidden)) for i in range(more.deepstack)),
            Port("logits_indices", torch.int64, ("picks",)),
            *(Port(name, floats, kv) for name in past),
            *(Port(name, floats, source) for name in cross),
            *((Port("cross_mask", torch.int64, ("batch", "source")),) if more.cross_mask else ()),
        ),
        outputs=(
            Port("logits", floats, ("batch", "picks", shape.vocabulary)),
            *(Port(name, floats, kv_out) for name in present),
            *((Port("alignment", floats, ("batch", more.alignment, "new", "source")),) if more.alignment else ()),
        ),
        ranges=_decoder_ranges(shape),
        trace=_sizes(2, 4, 3, 2, n + 2 if cross else 0),
        checks=(
            _sizes(1, 0, 1, 1, n),
            _sizes(1, 0, 7, 7, n),
            _sizes(1, 5, 1, 1, n),
            _sizes(3, 5, 3, 2, n),
        ),
        make=lambda sizes, rng: _decoder_feeds(sizes, rng, more),
        states=tuple(StatePlan(i, o) for i, o in zip(past, present, strict=True)),
        treatment="weight_only",
    )


def _mask_ports(more: DecoderExtras) -> tuple[Port, ...]:
    if more.biases:
        return tuple(Port(name, torch.float32, ("batch", 1, "new", "total")) for name in more.biases)
    return (Port("attention_mask", torch.int64, ("batch", "total")),)


def _decoder_ranges(shape: DecoderShape) -> dict[str, tuple[int, int, int]]:
    ranges = {
        "batch": BATCH,
        "new": (1, 1, shape.context),
        "past": (0, min(256, shape.context), shape.context),
        "total": (1, min(257, shape.context), shape.context),
        "picks": (1, 1, shape.context),
    }
    return ranges | ({"source": (1, min(400, shape.cross_max), shape.cross_max)} if shape.cross_heads else {})


def _decoder_feeds(sizes: Sizes, rng: torch.Generator, more: DecoderExtras) -> Feeds:
    """Masks with one padded position in the first row, positions that count on, the last `picks` positions."""
    batch, past, total = sizes["batch"], sizes["past"], sizes["total"]
    mask = torch.ones(batch, total, dtype=torch.int64)
    if batch > 1 and past > 1:
        mask[0, 0] = 0
    positions = torch.arange(past, total).repeat(batch, 1)
    if more.position_axes:
        # The three axes of a picture's positions differ.
        positions = positions + torch.randint(0, 3, (3, batch, total - past), generator=rng)
    picks = torch.arange(sizes["picks"]) + sizes["new"] - sizes["picks"]
    feeds = {"attention_mask": mask, "position_ids": positions, "logits_indices": picks}
    feeds |= {name: causal_bias(mask, sizes["new"], torch.float32) for name in more.biases}
    if more.cross_mask:
        feeds["cross_mask"] = torch.ones(batch, sizes["source"], dtype=torch.int64)
        feeds["cross_mask"][0, -1] = 0
    return feeds

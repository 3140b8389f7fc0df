"""What the encoder–decoders that see share: encoders that emit cross keys and values once, decoders that take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.pytorch_utils import Conv1D

from edgemm.bundle.spec import GenerationSpec
from edgemm.export import generation
from edgemm.export.graph import Feeds, GraphPlan, Port, Sizes
from edgemm.export.model_plan import Reference
from edgemm.export.plans import BATCH, DecoderShape
from edgemm.export.tracing import cache_argument, causal_bias, encoder_decoder_cache, plain_attention, tensors_of
from edgemm.export.wrappers import CrossProjection, Tensors, layered_names

PICTURES = (1, 1, 8)
STEPS = 24  # how far original and bundle are compared on each example


class CachedAttention(nn.Module):
    """Stands for attention classes that do not go through transformers' attention interface, so that they too come
    out as one plain subgraph. `output` is the projection that the class itself applies, if it does. Layers of an
    encoder do not `remember` keys and values.
    """

    def __init__(
        self,
        query: nn.Module,
        key: nn.Module,
        value: nn.Module,
        output: nn.Module | None,
        heads: int,
        layer: int,
        *,
        cross: bool,
        remembers: bool = True,
    ) -> None:
        super().__init__()
        self.query, self.output, self.heads, self.layer = query, output, heads, layer
        self.cross, self.remembers = cross, remembers
        if not cross:
            self.key, self.value = key, value

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """hidden_states [B, S, D] → [B, S, D]; a cross-attention finds its keys and values in the cache."""
        query = self._split(self.query(hidden_states))
        cache = past_key_values if cache is None else cache
        if self.cross:
            assert isinstance(cache, EncoderDecoderCache)
            held: Any = cache.cross_attention_cache.layers[self.layer]
            key, value = held.keys, held.values
            attention_mask = attention_mask if encoder_attention_mask is None else encoder_attention_mask
        else:
            key, value = self._split(self.key(hidden_states)), self._split(self.value(hidden_states))
            if self.remembers and isinstance(cache, EncoderDecoderCache):
                key, value = cache.self_attention_cache.update(key, value, self.layer)
        seen = plain_attention(self, query, key, value, attention_mask)[0].flatten(2)
        return (seen if self.output is None else self.output(seen)), None

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def linear(layer: nn.Module, part: int = 0, parts: int = 1) -> nn.Linear:
    """The `part`-th of `parts` equal slices of the outputs of a Linear or of GPT-2's transposed one."""
    weight: Any = layer.weight
    bias: Any = layer.bias
    weight = weight.detach().T if isinstance(layer, Conv1D) else weight.detach()
    size = weight.shape[0] // parts
    rows = slice(part * size, (part + 1) * size)
    made = nn.Linear(weight.shape[1], size, bias=bias is not None)
    made.weight = nn.Parameter(weight[rows].contiguous(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach()[rows].contiguous(), requires_grad=False)
    return made


def use_linear(module: nn.Module) -> None:
    """Replace GPT-2's transposed linear layers, which flatten and unflatten their input, by plain ones."""
    for name, child in module.named_children():
        if isinstance(child, Conv1D):
            setattr(module, name, linear(child))
        else:
            use_linear(child)


class Stem(nn.Module):
    """inputs_embeds [B, S, D] and position_ids [B, S] → what the first layer takes. `table` [positions, D]."""

    def __init__(self, table: torch.Tensor, norm: nn.Module | None) -> None:
        super().__init__()
        self.table = nn.Parameter(table.detach().clone().contiguous(), requires_grad=False)
        self.norm = norm if norm is not None else nn.Identity()

    def forward(self, embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x: torch.Tensor = self.norm(embeds + nn.functional.embedding(positions, self.table))
        return x


class CrossDecoder(nn.Module):
    """Original decoder layers as one graph for prefill and decode, cross K/V as inputs, over a `Stem` and a head."""

    def __init__(self, stem: Stem, layers: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.layers, self.head = stem, nn.ModuleList(layers), head

    def forward(self, feeds: Feeds) -> Tensors:
        """See `plans.decoder_plan`."""
        embeds = feeds["inputs_embeds"]
        cross = [feeds[n] for n in layered_names("cross", len(self.layers))]
        past = [feeds[n] for n in layered_names("past_key_values", len(self.layers))]
        cache = encoder_decoder_cache(past, cross)
        bias = causal_bias(feeds["attention_mask"], embeds.shape[1], embeds.dtype)
        cross_bias = padding_bias(feeds["cross_mask"], embeds.dtype) if "cross_mask" in feeds else None
        x = self.stem(embeds, feeds["position_ids"])
        for layer in self.layers:
            # The cache holds the cross keys and values: the states only say that there is an encoder.
            out = layer(
                x,
                attention_mask=bias,
                encoder_hidden_states=cross[0],
                encoder_attention_mask=cross_bias,
                **cache_argument(layer, cache),
            )
            x = out[0] if isinstance(out, tuple) else out
        logits = self.head(x.index_select(1, feeds["logits_indices"]))
        return (logits, *tensors_of(cache.self_attention_cache))


def padding_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The additive mask [B, 1, 1, T] of a padding mask [B, T]."""
    return torch.where(mask[:, None, None, :] != 0, 0.0, torch.finfo(dtype).min).to(dtype)


class PictureEncoder(nn.Module):
    """pixel_values [N, 3, H, W] → image_features [N · T, D] and, with `cross`, keys and values of the next stage."""

    def __init__(self, tower: Callable[[torch.Tensor], torch.Tensor], cross: CrossProjection | None) -> None:
        super().__init__()
        self.tower, self.cross = tower, cross

    def forward(self, feeds: Feeds) -> Tensors:
        """See the class."""
        states = self.tower(feeds["pixel_values"])
        return (states.flatten(0, 1), *(self.cross(states) if self.cross else ()))


def vision_encoder_plan(
    module: PictureEncoder,
    size: tuple[int, int],
    features: tuple[int, int],
    cross: Sequence[str] = (),
    heads: int = 0,
) -> GraphPlan:
    """`vision_encoder` at a fixed `size` (height, width), with `features` (tokens, dimension) a picture.

    `cross` names the outputs [N, heads, T, D / heads] of `module.cross`.
    """
    tokens, hidden = features
    keys = module.cross.keys[0] if module.cross is not None else None
    width = int(keys.out_features) // heads if isinstance(keys, nn.Linear) else 0
    return GraphPlan(
        role="vision_encoder",
        module=module,
        inputs=(Port("pixel_values", torch.float32, ("batch", 3, *size)),),
        outputs=(
            Port("image_features", torch.float32, ("image_tokens", hidden)),
            *(Port(name, torch.float32, ("batch", heads, tokens, width)) for name in cross),
        ),
        ranges={"batch": PICTURES, "image_tokens": (tokens, tokens, PICTURES[2] * tokens)},
        trace={"batch": 2},
        checks=({"batch": 1}, {"batch": 3}),
    )


def text_encoder_plan(
    module: nn.Module, reads: Port, given: Sequence[Port], shape: DecoderShape, longest: int, vocabulary: int
) -> GraphPlan:
    """`text_encoder`: `reads` (ids or embeddings [B, S, …]), attention_mask and `given` → states and cross.*."""

    def make(sizes: Sizes, rng: torch.Generator) -> Feeds:
        batch, source = sizes["batch"], sizes["source"]
        mask = torch.ones(batch, source, dtype=torch.int64)
        if batch > 1:
            mask[0, -1] = 0
        ids = torch.randint(0, vocabulary, (batch, source), generator=rng)
        return {"attention_mask": mask} | ({"input_ids": ids} if reads.name == "input_ids" else {})

    dims = ("batch", shape.cross_heads, "source", shape.cross_dim or shape.head_dim)
    return GraphPlan(
        role="text_encoder",
        module=module,
        inputs=(reads, Port("attention_mask", torch.int64, ("batch", "source")), *given),
        outputs=(
            Port("encoder_hidden_states", torch.float32, ("batch", "source", shape.hidden)),
            *(Port(name, torch.float32, dims) for name in layered_names("cross", shape.layers)),
        ),
        ranges={"batch": BATCH, "source": (1, min(64, longest), longest)},
        trace={"batch": 2, "source": 5},
        checks=({"batch": 1, "source": 1}, {"batch": 1, "source": 7}, {"batch": 3, "source": 4}),
        make=make,
        treatment="dynamic",
    )


def generation_spec(config: Any, context: int) -> GenerationSpec:
    """Limits and rules of a generation configuration."""
    forced = getattr(config, "forced_bos_token_id", None)
    end = getattr(config, "forced_eos_token_id", None)
    return generation.generation_spec(
        config,
        otherwise=context,
        max_positions=context,
        suppress_tokens=tuple(getattr(config, "suppress_tokens", None) or ()),
        begin_suppress_tokens=tuple(getattr(config, "begin_suppress_tokens", None) or ()),
        forced_ids=() if forced is None else (forced,),
        forced_eos=end[0] if isinstance(end, (list, tuple)) else end,
    )


def said(ids: Sequence[int], eos: Sequence[int]) -> Reference:
    """The generated ids before the first end token."""
    ends = [i for i, token in enumerate(ids) if token in eos]
    return Reference(tokens=tuple(ids[: ends[0]] if ends else ids))

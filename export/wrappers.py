"""The components of the graph contract as torch modules: dict of named tensors in, tuple of tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgemm.export.graph import OPSET, Feeds
from edgemm.export.traced import Traced
from edgemm.export.tracing import (
    Heads,
    cache_argument,
    cache_of,
    causal_bias,
    chosen_heads,
    encoder_decoder_cache,
    tensors_of,
    watching,
)

Tensors = tuple[torch.Tensor, ...]


class EmbedTokens(nn.Module):
    """input_ids [B, S] → inputs_embeds [B, S, hidden].

    The table is [hidden, vocabulary], the layout of the output head's weight, so that a tied table is stored once for
    both graphs; it is a view of the embedding's own.
    """

    def __init__(self, embedding: nn.Embedding, scale: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Parameter(embedding.weight.detach().T, requires_grad=False)
        self.scale = scale

    def forward(self, feeds: Feeds) -> Tensors:
        return (self.table[:, feeds["input_ids"]].permute(1, 2, 0) * self.scale,)

    def graph(self) -> Traced:
        """The same by hand: a gather along the second axis, so that the table keeps the head's layout."""
        nodes = [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"], axis=1),
            helper.make_node("Transpose", ["rows"], ["inputs_embeds"], perm=[1, 2, 0]),
        ]
        table = self.table.numpy()
        floats = helper.np_dtype_to_tensor_dtype(table.dtype)
        weights = [TensorProto(name="table", data_type=floats, dims=table.shape, data_location=TensorProto.EXTERNAL)]
        if self.scale != 1.0:
            nodes[1].output[0] = "unscaled"
            nodes.append(helper.make_node("Mul", ["unscaled", "scale"], ["inputs_embeds"]))
            factor = self.table.new_tensor(self.scale).numpy()
            weights.append(numpy_helper.from_array(factor, "scale"))
        dims = ["batch", "new"]
        graph = helper.make_graph(
            nodes,
            "embed_tokens",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, dims)],
            [helper.make_tensor_value_info("inputs_embeds", floats, [*dims, len(table)])],
            weights,
        )
        return Traced(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]), {"table": table})


class CrossProjection(nn.Module):
    """encoder states [B, T, D] → key, value [B, H, T, D/H] of every decoder layer, layer by layer."""

    def __init__(self, projections: Sequence[tuple[nn.Module, nn.Module]], heads: int) -> None:
        super().__init__()
        self.keys = nn.ModuleList([k for k, _ in projections])
        self.values = nn.ModuleList([v for _, v in projections])
        self.heads = heads

    def forward(self, states: torch.Tensor) -> list[torch.Tensor]:
        pairs = zip(self.keys, self.values, strict=True)
        return [self._split(p(states)) for pair in pairs for p in pair]

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class AudioEncoderWithCross(nn.Module):
    """Sound → audio_features and the cross-attention keys and values, emitted once."""

    def __init__(self, encoder: nn.Module, cross: CrossProjection, input_name: str) -> None:
        super().__init__()
        self.encoder, self.cross, self.input_name = encoder, cross, input_name

    def forward(self, feeds: Feeds) -> Tensors:
        states = self.encoder(feeds[self.input_name]).last_hidden_state
        return (states, *self.cross(states))


class EncoderDecoderDecoder(nn.Module):
    """The decoder of an encoder–decoder: one graph for prefill and decode, cross K/V as inputs.

    With `alignment` the cross-attention weights of those (layer, head) pairs come last; the layers' cross-attentions
    are then called `encoder_attn`.
    """

    def __init__(self, decoder: nn.Module, head: nn.Module, layers: int, alignment: Heads = ()) -> None:
        super().__init__()
        self.decoder, self.head, self.layers, self.alignment = decoder, head, layers, alignment

    def forward(self, feeds: Feeds) -> Tensors:
        embeds = feeds["inputs_embeds"]
        cross = _layered(feeds, "cross", self.layers)
        cache = encoder_decoder_cache(_layered(feeds, "past_key_values", self.layers), cross)
        attentions = [layer.encoder_attn for layer in self.decoder.layers] if self.alignment else []
        with watching(attentions) as weights:
            states = self.decoder(
                inputs_embeds=embeds,
                attention_mask=causal_bias(feeds["attention_mask"], embeds.shape[1], embeds.dtype),
                position_ids=feeds["position_ids"],
                encoder_hidden_states=cross[0],
                use_cache=True,
                **cache_argument(self.decoder, cache),
            ).last_hidden_state
        logits = self.head(states.index_select(1, feeds["logits_indices"]))
        aligned = (chosen_heads(list(weights.values()), self.alignment),) if self.alignment else ()
        return (logits, *tensors_of(cache.self_attention_cache), *aligned)


class CausalDecoder(nn.Module):
    """A decoder-only language model: one graph for prefill and decode."""

    def __init__(self, model: nn.Module, head: nn.Module, layers: int) -> None:
        super().__init__()
        self.model, self.head, self.layers = model, head, layers

    def forward(self, feeds: Feeds) -> Tensors:
        embeds = feeds["inputs_embeds"]
        cache = cache_of(_layered(feeds, "past_key_values", self.layers))
        states = self.model(
            inputs_embeds=embeds,
            attention_mask=self.mask(feeds),
            position_ids=feeds["position_ids"],
            use_cache=True,
            **cache_argument(self.model, cache),
            **self.more(feeds),
        ).last_hidden_state
        logits = self.head(states.index_select(1, feeds["logits_indices"]))
        return (logits, *tensors_of(cache))

    def mask(self, feeds: Feeds) -> Any:
        """The additive mask, or one for each kind of layer."""
        embeds = feeds["inputs_embeds"]
        return causal_bias(feeds["attention_mask"], embeds.shape[1], embeds.dtype)

    def more(self, feeds: Feeds) -> dict[str, Any]:
        """What the model takes beside the usual."""
        return {}


def _layered(feeds: Feeds, prefix: str, layers: int) -> list[torch.Tensor]:
    return [feeds[name] for name in layered_names(prefix, layers)]


def layered_names(prefix: str, layers: int) -> list[str]:
    """`prefix.0.key`, `prefix.0.value`, `prefix.1.key`, …"""
    return [f"{prefix}.{i}.{part}" for i in range(layers) for part in ("key", "value")]

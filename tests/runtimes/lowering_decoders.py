"""Tiny decoders of the kinds that lowering knows, traced and written as export writes them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from edgemm.export.graph import GraphPlan, trace
from edgemm.export.plans import DecoderShape, decoder_plan
from edgemm.export.precision.int4 import quantize_int4
from edgemm.export.precision.weights import quantize_weights
from edgemm.export.store import GraphStore
from edgemm.export.tracing import use_plain_attention
from edgemm.export.wrappers import CausalDecoder
from edgemm.runtimes.base import StatePort
from tests.checkpoints import widen
from tests.export.exported import place

_COMMON: Mapping[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Kind:
    """A model class and where its sizes differ from the common ones."""

    config: type
    model: type
    changes: Mapping[str, Any]


KINDS = {
    "grouped": Kind(LlamaConfig, LlamaForCausalLM, {}),
    "every_head": Kind(LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 8}),
    "one_head": Kind(LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 1, "head_dim": 32}),
    "biases": Kind(Qwen2Config, Qwen2ForCausalLM, {}),
    "head_norms": Kind(Qwen3Config, Qwen3ForCausalLM, {}),
    "narrow_heads": Kind(LlamaConfig, LlamaForCausalLM, {"head_dim": 12}),
}


@cache
def decoder(kind: str) -> GraphPlan:
    """The plan of a tiny decoder."""
    about = KINDS[kind]
    torch.manual_seed(7)
    sizes = {**_COMMON, **about.changes}
    model = about.model(about.config(**sizes)).eval()
    widen(model, 0, gain=3.0, table=0.6)
    use_plain_attention(model)
    shape = DecoderShape(
        layers=sizes["num_hidden_layers"],
        hidden=sizes["hidden_size"],
        kv_heads=sizes["num_key_value_heads"],
        head_dim=sizes["head_dim"],
        vocabulary=sizes["vocab_size"],
        context=sizes["max_position_embeddings"],
    )
    return decoder_plan(CausalDecoder(model.model, model.lm_head, shape.layers), shape)


@cache
def _traced(kind: str) -> Any:
    return trace(decoder(kind))


def written(kind: str, precision: str = "fp32") -> tuple[Path, tuple[StatePort, ...]]:
    """The decoder's file and its states. Read only."""
    return _written(kind, precision)


@cache
def _written(kind: str, precision: str) -> tuple[Path, tuple[StatePort, ...]]:
    graph, model = decoder(kind), _traced(kind)
    root = place() / f"lowering-{kind}-{precision}"
    root.mkdir()
    written = {"fp32": copy.deepcopy, "int8": quantize_weights, "int4": quantize_int4}[precision](model)
    file, _ = GraphStore(root).write("decoder", written)
    ports = {p.name: tuple(d if isinstance(d, int) else -1 for d in p.dims) for p in graph.inputs}
    states = tuple(StatePort(s.input, s.output, ports[s.input], s.growth_axis) for s in graph.states)
    return root / file, states

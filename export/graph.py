"""torch → ONNX, one component at a time.

A component is described by a `GraphPlan`: the module, the names and symbolic dimensions of its inputs and
outputs, and how to make inputs of any size. It is traced with every symbolic dimension at 2 or more, so that no
dimension is specialised to 0 or 1, and then checked at other sizes before anything is written.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgemm.errors import CheckpointError
from edgemm.export.traced import Traced
from edgemm.export.tracer import onnx_of

OPSET = 20
IR_VERSION = 10

Sizes = Mapping[str, int]
Feeds = dict[str, torch.Tensor]
Treatment = Literal["static", "dynamic", "weight_only", "as_is"]


@dataclass(frozen=True)
class Port:
    """A graph input or output. A dimension is a number, or the name of a symbolic one."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class StatePlan:
    """A state tensor: which input it enters by and which output it leaves by."""

    input: str
    output: str
    growth_axis: int = 2


@dataclass(frozen=True)
class GraphPlan:
    """One component before it is traced.

    `ranges` gives (min, opt, max) of every symbolic dimension. `trace` and `checks` are sizes to trace and to check
    at. `make` turns sizes and a seed into inputs; ports that it leaves out are drawn at random. `treatment` says what
    `--int8` does: `static` (weights and activations), `dynamic` (weights by output channel, smoothed, so that runtimes
    may quantize activations as they come), `weight_only` (in blocks), or `as_is`; operators in
    `half_ops`, and those of the submodules `float_modules` ("model.decoder"), keep their weights in fp16 instead.
    Rows along axis 1 of `unordered` outputs may come in any order (queries that are picked by score). `build` writes
    the graph by hand where the exporter has no good form for it.
    """

    role: str
    module: torch.nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    ranges: Mapping[str, tuple[int, int, int]]
    trace: Sizes
    checks: tuple[Sizes, ...]
    make: Callable[[Sizes, torch.Generator], Feeds] = field(default=lambda _sizes, _rng: {})
    states: tuple[StatePlan, ...] = ()
    treatment: Treatment = "static"
    half_ops: tuple[str, ...] = ()
    float_modules: tuple[str, ...] = ()
    unordered: bool = False
    build: Callable[[], Traced] | None = None

    @property
    def weights_alone(self) -> bool:
        """Whether `--int8` leaves its activations as they are."""
        return self.treatment in ("dynamic", "weight_only")

    def feeds(self, sizes: Sizes, seed: int = 0) -> Feeds:
        """Inputs of the given sizes, in the order of `inputs`."""
        rng = torch.Generator().manual_seed(seed)
        made = self.make(sizes, rng)
        feeds = {}
        for port in self.inputs:
            shape = [sizes[d] if isinstance(d, str) else d for d in port.dims]
            feeds[port.name] = made.get(port.name, torch.randn(shape, generator=rng)).to(port.dtype)
            if list(feeds[port.name].shape) != shape:
                raise AssertionError(f"{port.name}: {list(feeds[port.name].shape)} is not {shape}")
        return feeds

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """The module's own outputs."""
        with torch.no_grad():
            values = self.module(feeds)
        return {p.name: v.numpy() for p, v in zip(self.outputs, values, strict=True)}


def trace(plan: GraphPlan) -> onnx.ModelProto:
    """The portable ONNX graph of a component with its weights inside; see `traced`."""
    return traced(plan).whole()


def traced(plan: GraphPlan) -> Traced:
    """Trace a component at `plan.trace`: its portable ONNX graph, and its weights, which are not copied.

    Raises CheckpointError where a dimension that must stay free is specialised by the module.
    """
    if plan.build is not None:
        built = plan.build()
        return Traced(_tidy(built.model, plan), built.weights)
    feeds = plan.feeds(plan.trace)
    fixed = [d for d, n in plan.trace.items() if n < 2]
    if fixed:
        raise AssertionError(f"{plan.role}: trace {fixed} at 2 or more")
    free = {
        p.name: {i: torch.export.Dim.DYNAMIC for i, d in enumerate(p.dims) if isinstance(d, str)} for p in plan.inputs
    }
    plan.module.eval()
    try:
        found = onnx_of(plan.module, feeds, free, [p.name for p in plan.outputs], OPSET)
    except Exception as error:
        raise CheckpointError(
            f"{plan.role} cannot be traced: {_reason(error)}",
            hint="run again with --debug for the whole trace",
        ) from error
    return Traced(_tidy(found.model, plan), found.weights)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _tidy(model: onnx.ModelProto, plan: GraphPlan) -> onnx.ModelProto:
    """Name the dimensions, drop what the exporter wrote for people, and check names and opset."""
    graph = model.graph
    for values, ports in ((graph.input, plan.inputs), (graph.output, plan.outputs)):
        found = [v.name for v in values]
        if found != [p.name for p in ports]:
            absent = sorted({p.name for p in ports} - set(found))
            raise CheckpointError(f"{plan.role} does not depend on its input {', '.join(absent)}")
        for value, port in zip(values, ports, strict=True):
            _name_dims(value, port)
    for node in graph.node:
        scope = _scope(node)
        if scope and node.name:
            node.name = f"{scope}/{node.name}"
        node.ClearField("doc_string")
        del node.metadata_props[:]
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "edgemm", ""
    model.graph.name = plan.role
    foreign = {o.domain for o in model.opset_import} - {"", "ai.onnx"}
    if foreign or len(model.functions):
        raise CheckpointError(f"{plan.role} needs operators of {', '.join(foreign)}")
    return model


def _scope(node: onnx.NodeProto) -> str:
    """The path of the submodule that a node was traced from."""
    found = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
    names = [name for name in ast.literal_eval(found)[:-1] if name]
    return str(names[-1]) if names else ""


def _name_dims(value: onnx.ValueInfoProto, port: Port) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for dim in port.dims:
        entry = shape.dim.add()
        if isinstance(dim, str):
            entry.dim_param = dim
        else:
            entry.dim_value = dim


def initializer_parameters(model: onnx.ModelProto) -> int:
    """Number of weights in a graph (tensors with at least one axis longer than one)."""
    return int(sum(np.prod(t.dims) for t in model.graph.initializer if np.prod(t.dims) > 1))

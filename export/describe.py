"""The manifest of what was written."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

import edgemm
from edgemm.bundle.files import sha256_of
from edgemm.bundle.manifest import (
    SMALL,
    Calibration,
    Checks,
    Component,
    Dim,
    Manifest,
    ModelEntry,
    NodeNote,
    ParityCheck,
    Precision,
    Quantization,
    Source,
    State,
    TensorInfo,
)
from edgemm.bundle.spec import TextSpec
from edgemm.bundle.writing import file_entries, write_manifest
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import GraphPlan, Port, initializer_parameters
from edgemm.export.model_plan import ModelPlan, ReadyGraph
from edgemm.export.precision.gated import UNJUDGED, Judged
from edgemm.export.task_check import TaskOutcome

LABELS = "labels.json"
Feeds = dict[str, NDArray[Any]]

_DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.int64: "int64",
    torch.bool: "bool",
}
_RECIPES = {
    "static": "int8 QDQ, symmetric, weights per channel, activations per tensor, smoothed",
    "dynamic": "int8 weights, symmetric, per channel, tables per row, smoothed",
    "weight_only": "int8 weights, symmetric, blocks of 32",
    "as_is": "as it is",
}
_INT4 = "int4 weights, symmetric, blocks of 32, tables and head in int8 blocks; rounded "
_ROUNDED = {
    True: "so that examples lose least (GPTQ)",
    False: "to the nearest, steps of least squared error: no examples were given",
}
_TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")


def files_of(plan: ModelPlan) -> dict[str, bytes]:
    """The host files of a model: its tokenizer, its labels."""
    labels = ({LABELS: plan.labels} if plan.labels else {}) | {
        _labels_of(task): names for task, names in plan.task_labels.items()
    }
    return {**plan.files, **{file: f"{json.dumps(x, ensure_ascii=False)}\n".encode() for file, x in labels.items()}}


def _labels_of(task: str) -> str:
    return f"{task}.{LABELS}"


def host_files(
    found: Mapping[str, tuple[Checkpoint, ModelPlan]], prefixes: Mapping[str, str]
) -> dict[tuple[str, str], str]:
    """(model, file) → where it stands in the bundle. A file that an earlier model has too stands there once."""
    stored: dict[bytes, str] = {}
    return {
        (name, file): stored.setdefault(data, f"{prefixes[name].rstrip('.') or 'host'}/{file}")
        for name, (_, plan) in found.items()
        for file, data in files_of(plan).items()
    }


def _dim(dim: int | str, plan: GraphPlan) -> Dim:
    if isinstance(dim, int):
        return Dim(min=dim, opt=dim, max=dim)
    low, best, high = plan.ranges[dim]
    return Dim(name=dim, min=low, opt=best, max=high)


def _tensor(port: Port, plan: GraphPlan, half: bool) -> TensorInfo:
    dtype = torch.float16 if half and port.dtype == torch.float32 else port.dtype
    return TensorInfo(
        name=port.name,
        dtype=_DTYPES[dtype],
        dims=tuple(_dim(d, plan) for d in port.dims),
    )


def component(
    directory: Path,
    name: str,
    model_name: str,
    plan: GraphPlan,
    precision: Precision,
    files: tuple[str, tuple[str, ...]],
    model: onnx.ModelProto,
) -> Component:
    """The manifest's entry of a written graph."""
    file, weights = files
    own = [f for f in (file, *weights) if Path(f).name.startswith(f"{name}.")]
    half = precision == "fp16"
    return Component(
        name=name,
        model=model_name,
        role=plan.role,
        precision=precision,
        int8_operators=_int8_operators(model),
        file=file,
        weights=weights,
        sha256=sha256_of(directory / file),
        bytes=sum((directory / f).stat().st_size for f in own),
        parameters=sum(p.numel() for p in plan.module.parameters()),
        opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        inputs=tuple(_tensor(p, plan, half) for p in plan.inputs),
        outputs=tuple(_tensor(p, plan, half) for p in plan.outputs),
    )


def _int8_operators(model: onnx.ModelProto) -> tuple[str, ...]:
    restored = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    weighted = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm", "Conv")]
    counts = Counter(n.op_type for n in weighted if n.input[0] in restored)
    return tuple(name for name, _ in counts.most_common())


def ready_component(
    directory: Path, files: tuple[str, tuple[str, ...]], name: str, model_name: str, ready: ReadyGraph
) -> Component:
    """The entry of a graph that came ready."""
    file, weights = files
    model = onnx.load(directory / file, load_external_data=False)
    return Component(
        name=name,
        model=model_name,
        role=ready.role,
        precision=ready.precision,
        file=file,
        weights=weights,
        sha256=sha256_of(directory / file),
        bytes=sum((directory / f).stat().st_size for f in (file, *weights)),
        parameters=initializer_parameters(model),
        opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        inputs=tuple(_onnx_tensor(v) for v in model.graph.input),
        outputs=tuple(_onnx_tensor(v) for v in model.graph.output),
    )


def _onnx_tensor(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    dims = (
        Dim(min=d.dim_value, opt=d.dim_value, max=d.dim_value)
        if d.HasField("dim_value")
        else Dim(name=d.dim_param, min=1, opt=1, max=2**31)
        for d in kind.shape.dim
    )
    return TensorInfo(name=value.name, dtype=dtype, dims=tuple(dims))


def _states(name: str, plan: GraphPlan) -> list[State]:
    shapes = {p.name: p.dims for p in plan.inputs}
    return [
        State(
            component=name,
            input=s.input,
            output=s.output,
            kind="kv",
            shape=tuple(_dim(d, plan) for d in shapes[s.input]),
            growth_axis=s.growth_axis,
        )
        for s in plan.states
    ]


def _source(checkpoint: Checkpoint, tasks: Sequence[str], parts: Sequence[Checkpoint]) -> Source:
    parts = list({p.path: p for p in parts}.values())  # several models may come from one
    counted = [(p.parameters, sum(f.stat().st_size for f in p.weight_files)) for p in parts]
    hashes = "".join(p.sha256 for p in parts)
    sha256 = checkpoint.sha256 if parts == [checkpoint] else hashlib.sha256(hashes.encode())
    return Source(
        id=checkpoint.name[0],
        revision=checkpoint.name[1],
        sha256=sha256 if isinstance(sha256, str) else sha256.hexdigest(),
        model_type=checkpoint.model_type,
        tasks=tuple(dict.fromkeys(tasks)),
        licence=str(checkpoint.config.get("licence") or checkpoint.config.get("license") or ""),
        parameters=sum(n for n, _ in counted),
        # A graph that comes as ONNX is counted by its bytes.
        bytes_fp32=sum(4 * n or size for n, size in counted),
    )


def manifest(
    directory: Path,
    source: Checkpoint,
    found: dict[str, tuple[Checkpoint, ModelPlan]],
    prefixes: dict[str, str],
    components: Sequence[Component],
    precision: Precision,
    calibrated: dict[str, Calibration],
) -> Manifest:
    """Describe the graphs in `directory` and write `edgemm.json`, checks still empty."""
    plans = {prefixes[n] + g.role: g for n, (_, p) in found.items() for g in p.graphs}
    stored = {c.name: c.precision for c in components}
    recipe = {n: _recipe(p, stored[n], n in calibrated) for n, p in plans.items()}
    excluded = [
        NodeNote(component=n, node=f"every {x}", reason="weights in fp16: activations have outliers")
        for n, p in plans.items()
        for x in p.half_ops
    ] + [
        NodeNote(component=n, node=f"{x}*", reason="weights in fp16: boxes and scores need finer steps than int8 has")
        for n, p in plans.items()
        for x in p.float_modules
    ]
    places = host_files(found, prefixes)
    result = Manifest(
        edgemm_version=edgemm.__version__,
        source=_source(source, [t for _, p in found.values() for t in p.tasks], [c for c, _ in found.values()]),
        models=tuple(_model(n, c, p, places, components) for n, (c, p) in found.items()),
        components=tuple(components),
        state=tuple(s for n, p in plans.items() for s in _states(n, p)),
        quantization=Quantization(
            recipe=recipe,
            calibration=calibrated,
            excluded=tuple(excluded) if precision in SMALL else (),
        ),
        files=file_entries(directory),
    )
    write_manifest(directory, result)
    return result


def _recipe(plan: GraphPlan, precision: Precision, calibrated: bool) -> str:
    if precision == "int4":
        return _INT4 + _ROUNDED[calibrated]
    if precision == "int8" and plan.weights_alone and calibrated:
        return f"{_RECIPES[plan.treatment]}; rounded {_ROUNDED[True]}"
    return _RECIPES[plan.treatment] if precision == "int8" else precision


def _model(
    name: str,
    checkpoint: Checkpoint,
    plan: ModelPlan,
    places: Mapping[tuple[str, str], str],
    components: Sequence[Component],
) -> ModelEntry:
    processing = plan.processing
    if processing.text is not None:
        text = TextSpec(**processing.text.model_dump() | {"tokenizer": places[name, "tokenizer.json"]})
        processing = processing.model_copy(update={"text": text})
    return ModelEntry(
        name=name,
        source=_source(checkpoint, plan.tasks, [checkpoint]),
        tasks=plan.tasks,
        components={c.role: c.name for c in components if c.model == name},
        processing=processing,
        tokens=plan.tokens,
        generation=plan.generation,
        labels=places.get((name, LABELS)),
        task_labels={task: places[name, _labels_of(task)] for task in plan.task_labels},
        context=plan.context,
    )


def finish(
    directory: Path,
    written: Manifest,
    parity: Sequence[ParityCheck],
    outcomes: Sequence[TaskOutcome],
    judged: Judged = UNJUDGED,
) -> Manifest:
    """Add what was checked and write the manifest again."""
    checks = Checks(
        parity=tuple(parity),
        tokens_equal=_tokens_equal(outcomes),
        tasks=tuple(o.check for o in outcomes),
        gate=judged.gate,
        speed=judged.speed,
        machine=f"{platform.machine()} {platform.system()}",
        tools={t: importlib.metadata.version(t) for t in _TOOLS},
    )
    told = {n: judged.choice.told(text) for n, text in written.quantization.recipe.items()}
    quantization = written.quantization.model_copy(update={"recipe": told, "restored": judged.restored})
    changes = {"quantization": quantization, "checks": checks, "files": file_entries(directory)}
    result = written.model_copy(update=changes)
    write_manifest(directory, result)
    return result


def _tokens_equal(outcomes: Sequence[TaskOutcome]) -> dict[str, float]:
    """Of each model, the least of its tasks."""
    found: dict[str, float] = {}
    for outcome in outcomes:
        if outcome.task != "classify":
            found[outcome.check.model] = min(outcome.tokens_equal, found.get(outcome.check.model, 1.0))
    return found

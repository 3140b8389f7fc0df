"""What a checkpoint is, what export would make of it, and what it lacks: from its headers, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path

from edgemm.errors import CheckpointError
from edgemm.export import families
from edgemm.export.checkpoint import Checkpoint, Tensor, find_checkpoint
from edgemm.export.families import FamilyFacts
from edgemm.export.foreign import Foreign, foreign
from edgemm.measure.estimate import PRECISIONS, estimate
from edgemm.measure.inspection import ComponentInfo, Inspection, summed

# As safetensors and configurations name them → as bundles do.
_PRECISIONS = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "I8": "int8", "U8": "int8"}
_CONFIGURED = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
# A modality → the graphs that it becomes.
_GRAPHS = {
    "decoder": ("decoder", "embed_tokens"),
    "language model": ("decoder", "embed_tokens"),
    "vision encoder": ("vision_encoder",),
    "projector": ("vision_encoder",),
    "newline": ("vision_encoder",),
    "audio encoder": ("audio_encoder",),
    "text encoder": ("text_encoder",),
    "connector": ("grid_encoder", "memory"),
    "detector": ("grid_encoder",),
    "speech decoder": ("decoder", "embed_tokens"),
}
_DECODES = ("decoder", "language model", "speech decoder", "shared")
_BLOCKED = (*_DECODES, "text encoder")
_PICTURES = ("vision encoder", "picture network", "video network")


def inspect_checkpoint(root: Path) -> Inspection:
    """See `edgemm.measure.inspection.inspect`."""
    checkpoint = find_checkpoint(root, allow_pickle=True)
    made = foreign(checkpoint)
    if made is not None:
        return _foreign(made)
    parts = {name: find_checkpoint(path, allow_pickle=True) for name, path in checkpoint.parts.items()}
    known = {name: families.known().get(part.model_type) for name, part in parts.items()}
    components = tuple(c for name, part in parts.items() for c in _parts_of(name, part, known[name]))
    files = (f for part in parts.values() for f in part.weight_files or part.pickles)
    return Inspection(
        kind="checkpoint",
        path=str(root),
        model_type=checkpoint.model_type,
        tasks=tuple(dict.fromkeys(t for f in known.values() if f is not None for t in f.tasks)),
        components=components,
        engines=(),
        bytes=sum(f.stat().st_size for f in files),
        parameters=sum(c.parameters for c in components),
        bytes_per_precision=summed((p, n) for c in components for p, n in c.bytes_per_precision.items()),
        checks=(),
        tokens_equal={},
        problems=tuple(p for name, part in parts.items() for p in _problems(name, part, known[name])),
    )


def _problems(name: str, part: Checkpoint, family: FamilyFacts | None) -> list[str]:
    """What stands in the way of exporting the part."""
    found = []
    if part.pickles:
        found.append(
            f"{name}: its weights are a pickle ({part.pickles[0].name}), which can run code when it is read: "
            "edgemm export takes it with --allow-pickle alone"
        )
    try:
        family = families.facts(part.model_type, part.config)
        families.check_head(part, family)
    except CheckpointError as error:
        return [*found, f"{name}: {error}"]
    return found + [f"{name}: {problem}" for problem in [*_weightless(part, family), *_missing_files(part, family)]]


def _weightless(part: Checkpoint, family: FamilyFacts) -> list[str]:
    absent = families.weightless(family, part.tensors) if part.weight_files else ()
    return [
        f"a {part.model_type} without its {modality}: no weight begins with {prefix!r} (copy the whole checkpoint)"
        for modality, prefix in absent
    ]


def _missing_files(part: Checkpoint, family: FamilyFacts) -> list[str]:
    """The tokenizer and the preprocessor that export would ask for."""
    wanted: list[tuple[str, tuple[str, ...]]] = []
    speaks = not family.needs.keys().isdisjoint(("decoder", "language model", "text encoder"))
    spells = any(name.endswith("ForCTC") for name in family.classes)
    # Encoder–decoders of speech know their own input.
    hears = "audio encoder" in family.needs and "decoder" not in family.needs
    if not family.needs.keys().isdisjoint(_PICTURES) or hears:
        wanted.append(("preprocessor", ("preprocessor_config.json", *(("processor_config.json",) if speaks else ()))))
    if speaks or spells:
        wanted.append(("tokenizer", ("vocab.json",) if spells else ("tokenizer.json",)))
    return [
        f"it has no {what}: {' or '.join(files)} (copy it from the model that was fine-tuned)"
        for what, files in wanted
        if not any((part.path / file).is_file() for file in files)
    ]


def _parts_of(name: str, part: Checkpoint, family: FamilyFacts | None) -> list[ComponentInfo]:
    """The modalities of a part and what they share; the whole part where it has but one."""
    needs = family.needs if family is not None else {}
    several = needs if len(needs) > 1 else {}
    groups: dict[str, dict[str, Tensor]] = {modality: {} for modality in several}
    for path, tensor in _tensors(part).items():
        groups.setdefault(_modality(path, several) or ("shared" if several else "model"), {})[path] = tensor
    if not groups:  # it comes as a graph, whose weights are inside and never less than fp16
        size = sum(f.stat().st_size for f in part.weight_files)
        sizes = {precision: size if precision == "fp32" else size // 2 for precision in PRECISIONS}
        return [
            ComponentInfo(
                _named(name, "model"), name, "model", part.model_type, "fp32", 0, size, bytes_per_precision=sizes
            )
        ]
    return [_component(name, part, family, role, group) for role, group in groups.items() if group]


def _component(
    name: str, part: Checkpoint, family: FamilyFacts | None, role: str, tensors: Mapping[str, Tensor]
) -> ComponentInfo:
    own = role.replace(" ", "_")
    return ComponentInfo(
        name=_named(name, own),
        model=name,
        role=own,
        model_type=part.model_type,
        precision=_precision(tensors.values()),
        parameters=sum(t.parameters for t in tensors.values()),
        bytes=sum(t.bytes for t in tensors.values()),
        graphs=graphs_of(role, family),
        bytes_per_precision=estimate(tensors, blocked=role in _BLOCKED, decodes=role in _DECODES),
    )


def graphs_of(role: str, family: FamilyFacts | None) -> tuple[str, ...]:
    """The graphs that export makes of a modality; none of what several share, or of an unknown family."""
    if family is None or not family.needs or role == "shared":
        return ()
    if role == "model" and "text encoder" in family.needs:
        return ("text_encoder",)
    return _GRAPHS.get(role, ("model",))


def _tensors(part: Checkpoint) -> dict[str, Tensor]:
    """What the headers say; of a pickle, one tensor of as many weights as its size and its `dtype` give."""
    if not part.pickles:
        return part.tensors
    size = sum(f.stat().st_size for f in part.pickles)
    dtype, width = _CONFIGURED.get(str(part.config.get("dtype") or part.config.get("torch_dtype")), ("F32", 4))
    return {"": Tensor(dtype, (1, size // width), size)}


def _named(model: str, role: str) -> str:
    return role if model == "main" else f"{model}.{role}"


def _modality(path: str, needs: Mapping[str, tuple[str, ...]]) -> str | None:
    """The modality whose weights stand nearest to `path` in the module tree; None where two are as near."""
    roots = {modality: [p for prefix in prefixes for p in prefix.split("|")] for modality, prefixes in needs.items()}
    near = {modality: max(_shared_depth(path, p) for p in found) for modality, found in roots.items()}
    best = [modality for modality, n in near.items() if n == max(near.values())]
    return best[0] if len(best) == 1 else None


def _shared_depth(a: str, b: str) -> int:
    """How many modules, from the root, two dotted names have in common."""
    same = (x == y for x, y in zip(a.split("."), b.split("."), strict=False))
    return sum(1 for _ in takewhile(bool, same))


def _precision(tensors: Iterable[Tensor]) -> str:
    """What most of the bytes are stored in."""
    sums = summed((t.dtype, t.bytes) for t in tensors)
    dtype = max(sums, key=lambda d: sums[d])
    return _PRECISIONS.get(dtype, dtype.lower())


def _foreign(made: Foreign) -> Inspection:
    """The graphs that another exporter wrote, and whether export makes a bundle of them."""
    checkpoint, graphs = made.checkpoint, made.graphs
    return Inspection(
        kind="graphs",
        path=str(checkpoint.path),
        model_type=checkpoint.model_type,
        tasks=made.tasks,
        components=tuple(
            ComponentInfo(
                name=graph.name,
                model="main",
                role=graph.name,
                model_type=checkpoint.model_type,
                precision=graph.precision,
                parameters=graph.parameters,
                bytes=graph.bytes,
                opset=graph.opset,
                inputs=tuple(map(str, graph.inputs)),
                outputs=tuple(map(str, graph.outputs)),
            )
            for graph in graphs
        ),
        engines=(),
        bytes=sum(f.stat().st_size for f in checkpoint.weight_files),
        parameters=sum(graph.parameters for graph in graphs),
        bytes_per_precision=summed((graph.precision, graph.bytes) for graph in graphs),
        checks=(),
        tokens_equal={},
        problems=(f"made by {made.maker}: {made.refusal} ({made.advice})",) if made.refusal else (),
        maker=made.maker,
    )

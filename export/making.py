"""The graphs of one bundle: made in a precision, written, compared with their modules."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from edgemm.bundle.manifest import Calibration, Component, Manifest, ParityCheck, Precision
from edgemm.errors import CheckpointError
from edgemm.export import describe
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import GraphPlan, traced
from edgemm.export.half import half_plan
from edgemm.export.model_plan import Example, ModelPlan, ReadyGraph
from edgemm.export.precision import calibration
from edgemm.export.precision.compensation import compensated_int8
from edgemm.export.precision.decoder_inputs import DecoderInputs, examples_for
from edgemm.export.precision.gates import AS_USUAL, NO_GATES, Choice, Gates
from edgemm.export.precision.int4 import precision_of, quantize_int4
from edgemm.export.precision.ranges import Known
from edgemm.export.precision.recipe import Recipe
from edgemm.export.precision.smooth import TWIN_ALPHA, smooth
from edgemm.export.precision.static import quantize_static_int8, smoothed
from edgemm.export.precision.weights import halved_constants, quantize_columns, quantize_weights
from edgemm.export.store import GraphStore, Stored
from edgemm.export.traced import Traced
from edgemm.export.verify import check_component

Progress = Callable[[str, float], None]
_MOST_VALUES = 16 << 20  # of all examples together
_DRAWN = 16  # inputs, where a graph is smoothed without examples
STAGE = ".fp32"
"""Where the bundle in fp32 stands in the one that is made from it."""


@dataclass
class Work:
    """One export under way.

    `trying` while bundles are made only to be measured: nothing counts them. Without `compare` no graph is run.
    """

    precision: Precision
    examples: list[Example]
    calibrated: bool
    progress: Progress
    steps: int
    gates: Gates = NO_GATES
    choice: Choice = AS_USUAL
    trying: bool = False
    done: int = 0
    compare: bool = True
    parity: list[ParityCheck] = field(default_factory=list)
    seen: dict[str, list[describe.Feeds]] = field(default_factory=dict)
    stored: list[Stored] = field(default_factory=list)
    known: dict[str, Known] = field(default_factory=dict)

    def known_of(self, own: str) -> Known:
        """What was seen of a graph's activations."""
        return self.known.setdefault(own, Known())

    def step(self, what: str) -> None:
        self.progress(what, min(1.0, self.done / self.steps))
        self.done += not self.trying


def write_bundle(
    work: Work,
    source: Checkpoint,
    found: dict[str, tuple[Checkpoint, ModelPlan]],
    prefixes: dict[str, str],
    directory: Path,
    precision: Precision,
) -> Manifest:
    """Write every graph in `precision`, compared with its module, and the manifest, checks still empty.

    Below fp32 the graphs are made from those of the bundle in fp32 that stands under `STAGE`.
    """
    # A trial stands beside the fp32 stage, what is kept around it.
    stage = directory.parent / STAGE if work.trying else directory / STAGE
    store = GraphStore(directory)
    components: list[Component] = []
    used: dict[str, Calibration] = {}
    directory.mkdir(exist_ok=True)
    for name, (_, plan) in found.items():
        inside = len(components)
        for graph in plan.graphs:
            own = prefixes[name] + graph.role
            exact = precision_of(graph.role, precision)
            made = graph_in(work, stage, own, name, graph, plan, exact, used)
            file, weights = store.write(own, made)
            model = made.model if isinstance(made, Traced) else made
            components.append(describe.component(directory, own, name, graph, exact, (file, weights), model))
            if work.trying or not work.compare:
                continue
            real = calibration_feeds(work, plan, graph.role)[::8] if exact == "int8" else work.seen.pop(own, [])
            work.parity.append(check_component(graph, directory / file, own, exact, real=real))
        for ready in plan.ready:
            components.append(_write_ready(store, prefixes[name], name, ready, precision))
        if len(components) == inside:
            raise CheckpointError(f"{name} has no component")
    work.stored = store.stored
    _write_files(directory, found, prefixes)
    return describe.manifest(directory, source, found, prefixes, components, precision, used)


def graph_in(
    work: Work,
    stage: Path,
    own: str,
    model: str,
    graph: GraphPlan,
    plan: ModelPlan,
    precision: Precision,
    used: dict[str, Calibration],
) -> Traced | onnx.ModelProto:
    """One graph in `precision`; what it was calibrated on goes into `used`."""
    if precision == "fp32":
        work.step(f"tracing {own}")
        return traced(graph)
    work.step(f"{own} to {precision}")
    if precision == "fp16":
        return traced(half_plan(graph))
    whole = onnx.load(stage / "graphs" / f"{own}.onnx")
    recipe = work.choice.recipe(own)
    if precision == "int4":
        examples = examples_for(plan, work.examples)
        inputs = DecoderInputs(stage, model, plan.tasks[0], examples)
        return _int4(work, own, whole, graph, inputs, recipe.restored, used)
    feeds = calibration_feeds(work, plan, graph.role)
    if feeds or not graph.weights_alone:
        used[own] = Calibration(
            n=len(feeds),
            sha256=calibration.digest(work.examples),
            what=", ".join(feeds[0]) if feeds else "",
        )
    if not graph.weights_alone:
        return quantize_static_int8(
            whole,
            feeds,
            half_ops=graph.half_ops,
            float_modules=graph.float_modules,
            recipe=recipe,
            known=work.known_of(own),
        )
    whole = ready_for_int8(graph, whole, feeds, recipe, work.known_of(own))
    columns = graph.treatment == "dynamic"
    made = compensated_int8(whole, graph.half_ops, recipe.restored, feeds, columns=columns) if feeds else {}
    quantize = quantize_columns if columns else quantize_weights
    return quantize(whole, graph.half_ops, recipe.restored, made)


def ready_for_int8(
    graph: GraphPlan, whole: onnx.ModelProto, feeds: Sequence[describe.Feeds], recipe: Recipe, known: Known
) -> onnx.ModelProto:
    """What of the floating-point graph `whole` is rounded: smoothed, unless its weights are rounded in blocks.

    Where no example is for a `dynamic` graph, drawn inputs will do: they only choose between graphs that compute the
    same, and clip nothing.
    """
    if graph.treatment == "static":
        return smoothed(whole, feeds, recipe, known)
    if graph.treatment != "dynamic" or not recipe.smooth:
        return whole
    drawn = ({k: v.numpy() for k, v in graph.feeds(graph.trace, seed).items()} for seed in range(_DRAWN))
    return smooth(whole, feeds or list(drawn), alpha=TWIN_ALPHA, twins=True, known=known)


def _int4(
    work: Work,
    own: str,
    whole: onnx.ModelProto,
    graph: GraphPlan,
    inputs: DecoderInputs,
    restored: frozenset[str],
    used: dict[str, Calibration],
) -> onnx.ModelProto:
    """Rounded by what the decoder meets, where there are examples that its task takes; checked on the same."""
    if not inputs.examples:
        return quantize_int4(whole, graph.half_ops, restored=restored)
    used[own] = Calibration(n=len(inputs.examples), sha256=calibration.digest(inputs.examples), what=inputs.task)
    made = quantize_int4(whole, graph.half_ops, inputs.moments, restored)
    work.seen[own] = inputs.real
    return made


def calibration_feeds(work: Work, plan: ModelPlan, role: str) -> list[describe.Feeds]:
    """What the component `role` is given for each example: of large inputs fewer, evenly over the examples."""
    if plan.feeds is None:
        return []
    feeds = [plan.feeds(example) for example in work.examples]
    own = [f[role] for f in feeds if role in f]
    values = sum(array.size for feed in own for array in feed.values())
    return own[:: -(-values // _MOST_VALUES)] if own else []


def _write_ready(store: GraphStore, prefix: str, name: str, ready: ReadyGraph, precision: Precision) -> Component:
    """A graph as it came; below fp32 with its weights in fp16, as far as it needs no adapting."""
    own = prefix + ready.role
    files: tuple[str, tuple[str, ...]] = (f"graphs/{own}.onnx", ())
    if ready.adapt is None and precision == "fp32":
        (store.directory / "graphs").mkdir(exist_ok=True)
        shutil.copyfile(ready.path, store.directory / files[0])
        return describe.ready_component(store.directory, files, own, name, ready)
    try:
        model = onnx.load(ready.path)
    except (onnx.checker.ValidationError, OSError) as error:
        raise CheckpointError(f"{ready.path} lacks its weights: {error}", hint="copy it again") from error
    if ready.adapt is not None:
        files = store.write(own, ready.adapt(model))
    else:
        ready = replace(ready, precision="fp16")
        files = store.write(own, halved_constants(model))
    return describe.ready_component(store.directory, files, own, name, ready)


def _write_files(directory: Path, found: dict[str, tuple[Checkpoint, ModelPlan]], prefixes: dict[str, str]) -> None:
    places = describe.host_files(found, prefixes)
    for name, (_, plan) in found.items():
        for file, data in describe.files_of(plan).items():
            path = directory / places[name, file]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

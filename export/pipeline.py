"""checkpoint → bundle: trace, check, quantize, check again, and only then give it its name."""

from __future__ import annotations

import gc
import resource
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import onnx

from edgemm.bundle.manifest import Checks, Manifest, Precision
from edgemm.bundle.writing import beside, check_target, write_manifest, writing
from edgemm.errors import CheckpointError
from edgemm.export import deep, describe, families, task_check
from edgemm.export.checkpoint import Checkpoint, find_checkpoint
from edgemm.export.foreign import foreign
from edgemm.export.foreign_plan import foreign_plan
from edgemm.export.graph import GraphPlan
from edgemm.export.locate import located
from edgemm.export.making import STAGE, Progress, Work, calibration_feeds, graph_in, ready_for_int8, write_bundle
from edgemm.export.model_plan import ModelPlan
from edgemm.export.precision import calibration
from edgemm.export.precision.aware import as_trained
from edgemm.export.precision.gated import Judged, judge_speed, judged, loud, spared
from edgemm.export.precision.gates import AS_USUAL, NO_GATES, Choice, Gates, Workshop, settle
from edgemm.export.precision.int4 import precision_of
from edgemm.export.precision.report import write_report
from edgemm.export.precision.sensitivity import ENOUGH_S, Noise, noises

_TRIAL = ".trial"
_PROBED = 8  # examples on which the noise of operators is measured
_LISTENED, _LISTEN_S = 2, 60.0  # the same where no metric decides


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what was measured on the way."""

    bundle: Path
    manifest: Manifest
    seconds: float
    bytes: int
    checkpoint_bytes_fp32: int
    peak_rss_mb: float


def export(
    checkpoint: Path | str,
    target: Path | str,
    *,
    precision: Precision = "fp32",
    calibrate_on: Sequence[Path] = (),
    gates: Gates = NO_GATES,
    choice: Choice = AS_USUAL,
    overwrite: bool = False,
    allow_pickle: bool = False,
    progress: Progress = lambda _what, _share: None,
) -> ExportReport:
    """Export a checkpoint (a directory, a hub id or an adapter; see `locate`) to a verified bundle at `target`.

    `calibrate_on` are pictures, sounds, videos or folders of them; `int8` needs them for its activation ranges, and
    `int4` rounds decoders by them where they are given. What is no decoder is int8 in `int4`.
    `gates` are what the quantized bundle must hold beyond parity, `choice` is how it is quantized first.
    A checkpoint too large to be compared whole in the memory that is free is checked as `deep` says, in fp32 only.
    `progress` is called with what is being done and the share that is behind, 0…1.

    Raises CheckpointError for a checkpoint that can't be exported, CheckFailed (and writes nothing) where a component
    or a task differs from the original or a gate does not hold, BundleError for a target that exists, StorageError for
    a full disk.
    """
    start = time.perf_counter()
    target = Path(target).absolute()
    check_target(target, overwrite=overwrite)
    with located(checkpoint, allow_pickle=allow_pickle) as path:
        source = find_checkpoint(path)
        checks = _shallow_checks(source, target, precision, progress) if deep.is_deep(source) else None
        found = _plans(source)
        _check_precision(precision, found, calibrated=bool(calibrate_on))
        choice = as_trained(choice, (part for part, _ in found.values()), precision)
        examples = calibration.load_examples(calibrate_on) if calibrate_on else []
        graphs = sum(len(plan.graphs) for _, plan in found.values())
        steps = 3 * graphs + 2 * len(found) + 1
        work = Work(precision, examples, bool(examples), progress, steps, gates, choice)
        with writing(target, overwrite=overwrite) as partial:
            if checks is None:
                manifest = _write(work, source, found, partial)
            else:
                manifest = _write_deep(work, source, found, partial, checks)
            work.step("flushing to disk")
    return ExportReport(
        bundle=target,
        manifest=manifest,
        seconds=time.perf_counter() - start,
        bytes=sum(p.stat().st_size for p in target.rglob("*") if p.is_file()),
        checkpoint_bytes_fp32=manifest.source.bytes_fp32,
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def _shallow_checks(source: Checkpoint, target: Path, precision: Precision, progress: Progress) -> Checks:
    """What an export of the checkpoint cut to two layers finds: before the whole is loaded."""
    if precision != "fp32":
        raise CheckpointError(
            f"{source.path} has {4 * source.parameters / 1e9:.0f} GB of weights in fp32: too many to quantize and "
            "compare in the memory that is free",
            hint=f"leave --{precision} out, or export on a machine with three times that",
        )
    with beside(target) as place:
        small = deep.shallow(source, place / "checkpoint")
        report = export(small, place / "bundle", progress=lambda what, _: progress(f"two layers: {what}", 0.0))
        checks = report.manifest.checks
    gc.collect()
    return checks


def _check_precision(
    precision: Precision, found: Mapping[str, tuple[Checkpoint, ModelPlan]], *, calibrated: bool
) -> None:
    if precision not in get_args(Precision):
        raise CheckpointError(
            f"{precision} is not a precision that export writes", hint=f"one of {', '.join(get_args(Precision))}"
        )
    for checkpoint, plan in found.values():
        if precision != "fp32" and any(ready.adapt is not None for ready in plan.ready):
            raise CheckpointError(
                f"{checkpoint.path} holds a ready graph, which is taken in its own precision, not in {precision}",
                hint=f"leave --{precision} out, or run edgemm export on the checkpoint that it was made from",
            )
        if precision == "int4" and not calibrated and any(g.treatment == "static" for g in plan.graphs):
            raise CheckpointError(
                f"{checkpoint.path} has an encoder, which --int4 puts in int8 and needs real examples for",
                hint="add --calib PATH: pictures, sounds or videos like those that it will meet",
            )


def _plans(source: Checkpoint) -> dict[str, tuple[Checkpoint, ModelPlan]]:
    """The models of a checkpoint by name; those that one part holds beside its first are models of their own."""
    found: dict[str, tuple[Checkpoint, ModelPlan]] = {}
    for name, part in source.parts.items():
        checkpoint, plan = _family_plan(part)
        for own, each in {name: plan, **plan.beside}.items():
            if own in found or (own != name and own in source.parts):
                raise CheckpointError(
                    f"{source.path} has two models called {own}: {name} holds one",
                    hint="give the part another name in config.json, or leave it out",
                )
            found[own] = (checkpoint, each)
    return found


def _family_plan(path: Path) -> tuple[Checkpoint, ModelPlan]:
    checkpoint = find_checkpoint(path)
    made = foreign(checkpoint)
    if made is not None:
        return checkpoint, foreign_plan(made)
    family = families.facts(checkpoint.model_type, checkpoint.config)
    families.check_head(checkpoint, family)
    families.check_modalities(checkpoint, family)
    return checkpoint, families.find(checkpoint.model_type).plan(checkpoint)


def _write(work: Work, source: Checkpoint, found: dict[str, tuple[Checkpoint, ModelPlan]], partial: Path) -> Manifest:
    """Write the fp32 bundle, check its tasks, and unless fp32 was asked for, the wanted one beside it."""
    prefixes = {name: f"{name}." if len(found) > 1 else "" for name in found}
    stage = partial if work.precision == "fp32" else partial / STAGE
    first = write_bundle(work, source, found, prefixes, stage, "fp32")
    examples = work.examples or calibration.synthetic_examples()
    checks = task_check.against_original(stage, found, examples, work.step)
    if work.precision == "fp32":
        return describe.finish(stage, first, work.parity, checks)
    verdict = _settle(work, source, found, prefixes, partial)
    second = write_bundle(work, source, found, prefixes, partial, work.precision)
    verdict = judge_speed(work.gates.speed, stage, partial, verdict, work.step)
    shutil.rmtree(stage)
    checks = task_check.after(partial, checks, work.step)
    write_report(partial, verdict)
    return describe.finish(partial, second, work.parity, checks, verdict)


def _settle(
    work: Work,
    source: Checkpoint,
    found: dict[str, tuple[Checkpoint, ModelPlan]],
    prefixes: dict[str, str],
    partial: Path,
) -> Judged:
    """Let the accuracy gate choose how to quantize, by bundles that are made to be measured."""
    gate = work.gates.accuracy
    if gate is None:
        return _spare(work, found, prefixes, partial / STAGE)
    stage, trial = partial / STAGE, partial / _TRIAL

    def make(choice: Choice) -> Path:
        shutil.rmtree(trial, ignore_errors=True)
        work.choice = choice
        write_bundle(work, source, found, prefixes, trial, work.precision)
        return trial

    def noise(choice: Choice) -> list[Noise]:
        work.choice = choice
        graphs = [(prefixes[name] + g.role, name, g, plan) for name, (_, plan) in found.items() for g in plan.graphs]
        return [noise for one in graphs for noise in _noises(work, stage, *one)]

    work.trying = True
    static = work.precision != "fp16" and any(
        g.treatment == "static" for _, plan in found.values() for g in plan.graphs
    )
    settled = settle(gate, Workshop(make, noise, work.step), stage, work.choice, static=static)
    work.trying, work.choice = False, settled.trial.choice
    shutil.rmtree(trial)
    return judged(gate, settled)


def _spare(work: Work, found: dict[str, tuple[Checkpoint, ModelPlan]], prefixes: dict[str, str], stage: Path) -> Judged:
    """Without a metric: what int8 activations alone would disturb loudly is restored."""
    if work.precision != "int8" or work.choice.restored:
        return Judged(choice=work.choice)
    restored: list[Noise] = []
    for name, (_, plan) in found.items():
        for graph in plan.graphs:
            if graph.treatment == "static":
                own = prefixes[name] + graph.role
                work.progress(f"listening to {own}", min(1.0, work.done / work.steps))
                restored += loud(_noises(work, stage, own, name, graph, plan, _LISTENED, _LISTEN_S))
    work.choice = replace(work.choice, restored=tuple(restored))
    return spared(work.choice)


def _noises(
    work: Work,
    stage: Path,
    own: str,
    model: str,
    graph: GraphPlan,
    plan: ModelPlan,
    most: int = _PROBED,
    enough_s: float = ENOUGH_S,
) -> list[Noise]:
    if work.precision == "fp16":
        return []
    whole = onnx.load(stage / "graphs" / f"{own}.onnx")
    feeds: list[describe.Feeds] = [{k: v.numpy() for k, v in graph.feeds(graph.trace).items()}]
    if graph.treatment in ("static", "dynamic"):
        real = calibration_feeds(work, plan, graph.role)
        whole, feeds = (
            ready_for_int8(graph, whole, real, work.choice.recipe(own), work.known_of(own)),
            real or feeds,
        )
    quantized = graph_in(work, stage, own, model, graph, plan, precision_of(graph.role, work.precision), {})
    assert isinstance(quantized, onnx.ModelProto)
    feeds = work.seen.pop(own, feeds)
    return noises(own, whole, quantized, feeds[:: max(1, len(feeds) // most)][:most], enough_s=enough_s)


def _write_deep(
    work: Work, source: Checkpoint, found: dict[str, tuple[Checkpoint, ModelPlan]], partial: Path, checks: Checks
) -> Manifest:
    """Write the fp32 bundle of a checkpoint that is compared by its weights; `checks` are those of its two layers."""
    work.compare = False
    manifest = write_bundle(work, source, found, dict.fromkeys(found, ""), partial, "fp32")
    work.step("comparing every weight with the checkpoint")
    equal = deep.check_weights(source, work.stored)
    seen = checks.model_copy(update={"layers": deep.LAYERS, "weights_equal": equal})
    manifest = manifest.model_copy(update={"checks": seen})
    write_manifest(partial, manifest)
    return manifest

"""`edgemm predict`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemm.cli import args
from edgemm.cli import generation as how
from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb
from edgemm.errors import UsageError

if TYPE_CHECKING:
    from edgemm.measure.predict import LabelsAt, Prediction


def predict(
    io: Io,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="[BUNDLE] FILE…", help="Pictures, sounds and videos."),
    ],
    task: Annotated[str | None, typer.Option("--task", help="One task instead of all.")] = None,
    question: Annotated[str | None, typer.Option("--question", "--ask", help="Asked of pictures.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many labels.")] = 5,
    score_min: Annotated[
        float, typer.Option("--score-min", min=0.0, max=1.0, help="Objects below are left out.")
    ] = 0.5,
    words: Annotated[bool, typer.Option("--words", help="When each word was said (Whisper).")] = False,
    max_new_tokens: how.MaxNewTokens = None,
    temperature: how.Temperature = None,
    top_k: how.TopK = None,
    top_p: how.TopP = None,
    seed: how.Seed = 0,
    beams: how.Beams = None,
    repetition_penalty: how.RepetitionPenalty = None,
    stop: how.Stop = None,
    schema: how.Schema = None,
    runtime: args.RuntimeOption = "auto",
    device: args.DeviceOption = "CPU",
    threads: args.ThreadsOption = 0,
    exact: args.ExactOption = None,
) -> None:
    """Pictures, sound or video in, results out."""
    bundle, paths = (files[0], files[1:]) if args.is_bundle(files[0]) else (None, files)
    if not paths:
        raise UsageError("there is no file to look at", hint="run: edgemm predict BUNDLE FILE")
    generation = how.asked(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, beams=beams,
        repetition_penalty=repetition_penalty, stop=stop, schema=schema,
    )  # fmt: skip
    from edgemm.measure.predict import predict as look

    options: Any = {
        "task": task, "question": question, "top": top, "score_min": score_min, "words": words,
        "generation": generation,
    }  # fmt: skip
    with args.load(io, bundle, runtime=runtime, device=device, threads=threads, exact=exact) as model:
        results = []
        with io.progress() as tell:
            for number, path in enumerate(paths):
                tell(path.name, number / len(paths))
                results.append(look(model, path, **options))
        io.document({"bundle": str(model.bundle.path), "results": [asdict(r) for r in results]})
    for result in results:
        _show(io, result)


def _show(io: Io, result: Prediction) -> None:
    io.show(result.file)
    previous = ""
    for at in result.labels:
        line = _labels(at)
        if result.kind == "image":
            io.show(*(f"  {x.score:5.2f}  {x.label}" for x in at.labels))
        elif at.labels and at.labels[0].label != previous:
            previous = at.labels[0].label
            io.show(f"  {at.t_s:6.1f} s  {line}")
    for found in result.detections:
        when = "" if result.kind == "image" else f"{found.t_s:6.1f} s  "
        for item in found.objects:
            box = ", ".join(f"{value:.0f}" for value in item.box_px)
            io.show(f"  {when}{item.score:5.2f}  {item.label}  [{box}]")
    if result.transcript is not None:
        for segment in result.transcript.segments:
            io.show(f"  {segment.t_start_s:6.1f} s  “{segment.text}”")
        for word in result.transcript.words:
            io.show(f"  {word.start_s:6.2f} – {word.end_s:.2f} s  {word.text.strip()}")
    for said in (result.caption, result.description, result.answer):
        if said is not None:
            io.show(f"  {said.text}")


def _labels(at: LabelsAt) -> str:
    return ", ".join(f"{x.label} {x.score:.2f}" for x in at.labels[:2])


verb = as_verb(predict)

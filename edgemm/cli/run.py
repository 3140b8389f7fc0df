"""`edgemm run`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from edgemm.cli import args
from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb
from edgemm.errors import InputError, UsageError

if TYPE_CHECKING:
    from edgemm.live.options import StreamOptions
    from edgemm.live.sinks.base import Sink
    from edgemm.model import Model

Camera = Annotated[
    list[str] | None,
    typer.Option(
        "--camera",
        help="0, /dev/video2, a file, a run.mcap, rtsp://…, csi://0, screen://, browser://, test://… Repeatable.",
    ),
]
Mic = Annotated[
    str | None,
    typer.Option("--mic", help="default, a name's part, a file, browser://, none."),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task", help="classify, detect, caption, describe, answer, transcribe; by commas. Else all but describe."
    ),
]
Ask = Annotated[list[str] | None, typer.Option("--ask", help="A question about the picture. Repeatable.")]
Wake = Annotated[
    list[str] | None,
    typer.Option("--wake", help="Only what is said after this is a question: “hey robot”. Repeatable."),
]
Every = Annotated[
    str | None,
    typer.Option("--every", help="Least time between two frames: 0.5s. Or change: only what differs; change:0.5s."),
]
Window = Annotated[str, typer.Option("--window", help="What is described: so many frames, so many a second.")]
Size = Annotated[str | None, typer.Option("--size", help="Of the camera: 1280x720.")]
Fps = Annotated[float | None, typer.Option("--fps", help="Of the camera.")]
ScoreMin = Annotated[float, typer.Option("--score-min", min=0.0, max=1.0, help="Labels below are left out.")]
Labels = Annotated[str | None, typer.Option("--labels", help="Only these labels; by commas.")]
Language = Annotated[str | None, typer.Option("--language", help="What is spoken, such as en; else the model decides.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Bound of an answer.")]
Show = Annotated[
    bool,
    typer.Option("--show/--no-show", help="A window with the results, where there is a display."),
]
Record = Annotated[
    list[Path] | None,
    typer.Option("--record", help="out.mp4 (annotated), out.mcap, out.jpg. Repeatable."),
]
SinkUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--sink",
        help="Events to ws://127.0.0.1:8765, mqtt://…, prometheus://…, zenoh://…; answers to speak://. Repeatable.",
    ),
]
Web = Annotated[
    str | None,
    typer.Option(
        "--web",
        metavar="HOST:PORT",
        help="The live page, such as 127.0.0.1:8080; other addresses than loopback need the token that is printed.",
    ),
]
WebCert = Annotated[Path | None, typer.Option("--web-cert", help="A certificate (PEM): the page by https.")]
WebKey = Annotated[Path | None, typer.Option("--web-key", help="Its key (PEM), unless the certificate holds it.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Starts a Rerun viewer: the same as --sink rerun://.")]
MaxFrames = Annotated[int | None, typer.Option("--max-frames", help="End after so many frames looked at.")]
Duration = Annotated[str | None, typer.Option("--duration", help="End after 10s, 2m.")]
AsFastAsPossible = Annotated[bool, typer.Option("--as-fast-as-possible", help="Files without pauses or drops.")]


def run(
    io: Io,
    bundle: args.BundleArgument = None,
    camera: Camera = None,
    mic: Mic = None,
    task: Task = None,
    ask: Ask = None,
    wake: Wake = None,
    every: Every = None,
    window: Window = "8@2fps",
    size: Size = None,
    fps: Fps = None,
    labels: Labels = None,
    score_min: ScoreMin = 0.0,
    language: Language = None,
    max_new_tokens: MaxNewTokens = 64,
    runtime: args.RuntimeOption = "auto",
    device: args.DeviceOption = "CPU",
    threads: args.ThreadsOption = 0,
    exact: args.ExactOption = None,
    show: Show = True,
    web: Web = None,
    web_cert: WebCert = None,
    web_key: WebKey = None,
    record: Record = None,
    sink: SinkUrls = None,
    rerun: Rerun = False,
    max_frames: MaxFrames = None,
    duration: Duration = None,
    as_fast_as_possible: AsFastAsPossible = False,
) -> None:
    """The live pipeline: what the cameras see and the microphone hears, as it happens."""
    from edgemm.live.options import StreamOptions
    from edgemm.live.pipeline import Pipeline
    from edgemm.live.sinks.registry import as_sinks

    frames, window_fps = args.window(window)
    every_s, on_change = args.every(every)
    options = StreamOptions(
        cameras=tuple(camera or ()),
        mic=mic,
        tasks=args.names(task),
        ask=tuple(ask or ()),
        wake=tuple(wake or ()),
        every_s=every_s,
        on_change=on_change,
        window=frames,
        window_fps=window_fps,
        size_px=args.size_px(size),
        fps=fps,
        labels=args.names(labels),
        score_min=score_min,
        language=language,
        max_new_tokens=max_new_tokens,
        max_frames=max_frames,
        duration_s=args.seconds(duration, "--duration"),
        as_fast_as_possible=as_fast_as_possible,
    )
    if not (options.open_cameras or options.mic not in (None, "none")):
        raise UsageError("neither a camera nor a microphone", hint="give --camera or --mic")
    page = _page(io, options, web, web_cert, web_key)
    urls = [*(sink or ()), *(["rerun://"] if rerun else [])]
    sinks = [*page, *map(_recorder, record or ()), *as_sinks(urls)]
    model = args.load(io, bundle, runtime=runtime, device=device, threads=threads, exact=exact)
    overlay = _window(io, show)
    Pipeline(model, _fitting(model, options), [*_screen(io, glance=not overlay), *sinks, *overlay]).run()


def _fitting(model: Model, options: StreamOptions) -> StreamOptions:
    """The options with the labels by the model's own names. Raises where it has no such label or language."""
    from dataclasses import replace

    from edgemm.measure.asking import label_of

    if options.labels is not None:
        task = "classify" if "classify" in model.tasks else "detect"
        options = replace(options, labels=tuple(label_of(text, model, task=task) for text in options.labels))
    if options.language is not None:
        generation = model.bundle.model_for("transcribe").generation
        known = sorted(generation.languages) if generation is not None else []
        if options.language not in known:
            raise InputError(
                f"{model.name} cannot be told that the language is {options.language!r}",
                hint=f"it knows {', '.join(known)}" if known else "it has one language: leave --language out",
            )
    return options


def _screen(io: Io, *, glance: bool) -> list[Sink]:
    """Events on stdout as JSON lines or as lines for people, and with `glance` a view on stderr where it is a terminal.

    Where both would share one terminal there is the view alone or, with `--json`, the lines alone.
    """
    from edgemm.live.sinks.jsonl import JsonlSink
    from edgemm.live.sinks.terminal import TerminalSink, usable
    from edgemm.live.sinks.text import TextSink

    lines: list[Sink] = [] if io.quiet else [TextSink(sys.stdout)]
    if io.json:
        lines = [JsonlSink(_Watched(sys.stdout, io))]  # type: ignore[arg-type]
    shared = sys.stdout.isatty()
    if not glance or io.quiet or (io.json and shared) or not usable(sys.stderr):
        return lines
    view = TerminalSink(sys.stderr)
    return [view] if shared else [*lines, view]


def _page(io: Io, options: StreamOptions, address: str | None, cert: Path | None, key: Path | None) -> list[Sink]:
    """The live page. Its address is told on stderr, even with `--quiet` where nobody could guess the token."""
    if address is None:
        if "browser://" in (*options.cameras, options.mic):
            raise UsageError("browser:// needs the live page", hint="add --web 127.0.0.1:8080")
        if cert or key:
            raise UsageError("a certificate without the live page", hint="add --web 127.0.0.1:8080")
        return []
    from edgemm.live.web import WebSink
    from edgemm.live.web.announce import announcement

    def ready(url: str) -> None:
        if "?token=" in url:
            print(announcement(url), file=sys.stderr, flush=True)
        else:
            io.note(announcement(url))

    return [WebSink(address, cert=cert, key=key, on_ready=ready)]


def _window(io: Io, show: bool) -> list[Sink]:
    """The overlay window, or one line that says why there is none."""
    from edgemm.live.window import WindowSink, why_no_window

    why_not = why_no_window() if show else None
    if why_not:
        io.note(why_not)
    return [WindowSink()] if show and not why_not else []


class _Watched:
    """stdout that remembers when its reader has gone, which ends the command quietly."""

    def __init__(self, out: IO[str], io: Io) -> None:
        self._out, self._io = out, io

    def write(self, text: str) -> None:
        self._do(self._out.write, text)

    def flush(self) -> None:
        self._do(self._out.flush)

    def _do(self, what: Callable[..., object], *values: str) -> None:
        try:
            what(*values)
        except BrokenPipeError:
            self._io.settings.reader_gone = True
            raise


def _recorder(path: Path) -> Sink:
    from edgemm.live.sinks.picture import SUFFIXES, PictureSink
    from edgemm.live.sinks.recording import McapSink
    from edgemm.live.sinks.video import VideoSink

    suffix = path.suffix.lower()
    if suffix == ".mcap":
        return McapSink(path)
    if suffix in SUFFIXES:
        return PictureSink(path)
    if suffix == ".mp4":
        return VideoSink(path)
    raise UsageError(f"--record cannot write {path.name}", hint="end it in .mp4, .mcap or .jpg")


verb = as_verb(run)

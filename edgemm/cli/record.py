"""`edgemm record`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgemm.cli import args
from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb


def record(
    io: Io,
    output: Annotated[Path, typer.Option("--output", "-o", help="The recording.")] = Path("recording.mcap"),
    camera: Annotated[str | None, typer.Option("--camera", help="0, /dev/video2, a file, rtsp://…, test://…")] = None,
    mic: Annotated[str | None, typer.Option("--mic", help="default, an index, a name's part, a file.")] = None,
    duration: Annotated[str | None, typer.Option("--duration", help="End after 10s, 2m.")] = None,
) -> None:
    """Camera and microphone to MCAP: for calibration, replay and bug reports. Ctrl-C ends it."""
    from edgemm.live.recording import RecordProgress
    from edgemm.live.recording import record as write

    limit_s = args.seconds(duration, "--duration")
    with io.progress() as tell:

        def on_progress(now: RecordProgress) -> None:
            share = now.duration_s / limit_s if limit_s else 0.0
            tell(f"{now.duration_s:.0f} s, {now.frames} frames, {now.bytes / 1e6:.1f} MB", share)

        def on_status(name: str, state: str, reason: str) -> None:
            io.note(f"{name} {state}" + (f": {reason}" if reason else ""))

        stop, interrupted = threading.Event(), False
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(
                write, camera, mic, output, duration_s=limit_s,
                on_progress=on_progress, on_status=on_status, stop=stop,
            )  # fmt: skip
            try:
                summary = work.result()
            except KeyboardInterrupt:
                stop.set()
                summary, interrupted = work.result(), True
    io.document(asdict(summary))
    io.show(
        f"{summary.path}: {summary.duration_s:.1f} s, {summary.frames} frames, "
        f"{summary.audio_s:.1f} s of sound, {summary.bytes / 1e6:.1f} MB"
    )
    if interrupted:
        raise KeyboardInterrupt


verb = as_verb(record)

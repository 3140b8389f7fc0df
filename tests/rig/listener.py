"""What a process that listens to the default microphone hears, one JSON line at a time.

It runs in a process of its own, because PortAudio reads its environment when it is loaded.
Lines: {"status": [monotonic_s, state, reason]}, {"end": {...}} and
{"block": [monotonic_s, t_start_s, gap_s, peak, now_s]}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Listener:
    """`with Listener(environment, "default") as heard:`; `heard.lines` grows."""

    def __init__(self, environment: dict[str, str], spec: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self.stderr = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rig.listener", spec],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Listener:
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.finish()

    def finish(self) -> int:
        """Asks it to end and returns its exit code."""
        process = self._process
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()
        try:
            code = process.wait(15)
        finally:
            process.kill()
        self._reader.join(5)
        assert process.stdout is not None
        assert process.stderr is not None
        if not process.stderr.closed:
            self.stderr = process.stderr.read()
            process.stdout.close()
            process.stderr.close()
        return code

    def of(self, key: str) -> list[Any]:
        return [line[key] for line in list(self.lines) if key in line]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(json.loads(line))


def listen(spec: str) -> None:
    import numpy as np

    from edgemm.live.audio_capture import open_audio
    from edgemm.live.clock import Clock
    from edgemm.live.pacing import Epoch

    def say(**line: Any) -> None:
        print(json.dumps(line), flush=True)

    clock = Clock()
    sound = open_audio(
        spec,
        name="mic",
        clock=clock,
        epoch=Epoch(clock),
        on_status=lambda name, state, why: say(status=[time.monotonic(), state, why]),
    )
    sound.start()
    closed = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), closed.set()), daemon=True).start()
    while not closed.is_set() and not sound.ended:
        block = sound.read(0.05)
        if block is not None:
            peak = float(np.abs(block.samples).max())
            say(block=[time.monotonic(), block.t_start_s, block.gap_s, peak, clock.now_s()])
    began = time.monotonic()
    sound.stop()
    counts = sound.ledger.counts()
    say(
        end={
            "stop_s": time.monotonic() - began,
            "gaps": counts.audio_gaps,
            "reconnects": counts.reconnects,
            "error": str(sound.error or ""),
        }
    )


if __name__ == "__main__":
    listen(sys.argv[1])

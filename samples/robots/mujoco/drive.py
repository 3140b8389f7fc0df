"""A simulated rover that does what it is told aloud, and answers what it is asked about its camera's picture.

    python samples/robots/mujoco/drive.py                     # the microphone
    python samples/robots/mujoco/drive.py --mic commands.wav  # a recording, as if it were said now

Say "drive forward", "turn left", "turn around", "stop" or "what shape is it?". One JSON document a line tells what was
heard, which command it was, what was answered, and where the rover came to rest. Needs `pip install mujoco` and
Debian's libosmesa6.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from commands import Command, spoken_command
from rover import Rover

import edgemm
from edgemm.live.events import AnswerEvent, TranscriptEvent

TICK_S = 0.1

Tell = Callable[[dict[str, Any]], None]


def drive(live: edgemm.Stream, tell: Tell) -> None:
    """Simulates a rover in real time and has it obey what the stream hears, until the run is over and the rover at
    rest. Raises what ended the run or the simulation."""
    orders: queue.SimpleQueue[Command] = queue.SimpleQueue()
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        simulation = pool.submit(_simulate, live, orders, over, tell)
        try:
            _listen(live, orders, tell)
        finally:
            over.set()
        simulation.result()


def _listen(live: edgemm.Stream, orders: queue.SimpleQueue[Command], tell: Tell) -> None:
    """Hands on commands, and tells what was heard and answered."""
    stopped = -1
    for event in live:
        if isinstance(event, AnswerEvent):
            tell({"question": event.question, "answer": event.text})
        if not isinstance(event, TranscriptEvent):
            continue
        command = spoken_command(event.text)
        # A stop does not wait for the end of the sentence: a false alarm costs less than a late one.
        if command == "stop" and event.utterance != stopped:
            stopped = event.utterance
            orders.put(command)
        elif command and command != "stop" and event.final:
            orders.put(command)
        if event.final:
            tell({"heard": event.text, "command": command})


def _simulate(live: edgemm.Stream, orders: queue.SimpleQueue[Command], over: threading.Event, tell: Tell) -> None:
    """The thread that owns the rover: `TICK_S` of motion and one picture in every `TICK_S`. With it ends the run."""
    with live, contextlib.closing(Rover()) as rover:
        doing: Command | None = None
        while doing or not over.is_set():
            began_s = time.monotonic()
            with contextlib.suppress(queue.Empty):
                doing = orders.get_nowait()
                rover.obey(doing)
            rover.advance(TICK_S)
            live.push_frame(rover.picture())
            if doing and not rover.moving:
                tell({"done": doing, **asdict(rover.pose)})
                doing = None
            time.sleep(max(0.0, began_s + TICK_S - time.monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mic", default="default", help="what edgemm's --mic takes, such as a wave file")
    parser.add_argument("--bundle", help="one that transcribes and answers; by default edgemm's own")
    options = parser.parse_args()
    model = edgemm.load(options.bundle)
    with edgemm.stream(model, mic=options.mic, tasks=("answer", "transcribe")) as live:
        drive(live, lambda line: print(json.dumps(line), flush=True))


if __name__ == "__main__":
    main()

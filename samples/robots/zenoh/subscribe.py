"""What `publish.py` sees and hears, in another process: a line for each result, until the run is over.

    python samples/robots/zenoh/subscribe.py

A line has the age of the event, from its emission to its arrival here, in milliseconds; between machines that is as
true as their clocks agree. Needs `pip install eclipse-zenoh` and nothing of edgemm.
"""

from __future__ import annotations

import argparse
import json
import queue
import time
from typing import Any

import zenoh

EYES = "robot/eyes"
JOIN_S = 0.2


def told(event: dict[str, Any]) -> str | None:
    """What a result says, in one line; None for events that are no results."""
    match event["type"]:
        case "labels" if event["labels"]:
            best = event["labels"][0]
            return f"sees {best['label']} ({best['score']:.0%})"
        case "caption":
            return f"sees {event['text']}"
        case "transcript" if event["final"]:
            return f"hears {event['text']}"
    return None


def joined(connect: str) -> zenoh.Session:
    """A peer that looks for no other peer than the one at `connect`."""
    config = zenoh.Config()
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("listen/endpoints", json.dumps([]))
    config.insert_json5("connect/endpoints", json.dumps([connect]))
    return zenoh.open(config)


def current(session: zenoh.Session, event_type: str) -> dict[str, Any]:
    """The last event of a type, which the publisher keeps for whoever comes late; waits until there is a publisher."""
    while True:
        for reply in session.get(f"{EYES}/{event_type}"):
            if reply.ok:
                event: dict[str, Any] = json.loads(reply.ok.payload.to_string())
                return event
        time.sleep(JOIN_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connect", default="tcp/127.0.0.1:7447", help="where publish.py listens")
    options = parser.parse_args()
    events: queue.SimpleQueue[tuple[float, dict[str, Any]]] = queue.SimpleQueue()
    with joined(options.connect) as session:
        # Zenoh calls back in a thread of its own, which must not be held up.
        session.declare_subscriber(
            f"{EYES}/*", lambda sample: events.put((time.time(), json.loads(sample.payload.to_string())))
        )
        started = current(session, "started")
        print(f"joined {started['bundle']}", flush=True)
        event = started
        while event["type"] != "summary":
            arrived_s, event = events.get()
            if line := told(event):
                age_ms = 1e3 * (arrived_s - started["wall_offset_s"] - event["t_s"])
                print(f"{age_ms:6.1f} ms  {line}", flush=True)


if __name__ == "__main__":
    main()

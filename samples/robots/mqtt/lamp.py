"""A lamp that is on while a robot sees something: events of edgemm from an MQTT broker, switched with a command back.

    edgemm run --camera 0 --sink mqtt://127.0.0.1:1883/robot & python samples/robots/mqtt/lamp.py --label "coffee mug"

The lamp is whatever takes ON and OFF at `home/lamp/set`, as Zigbee2MQTT's and Home Assistant's lamps do. It goes out
when the thing was not seen for `--hold` seconds, and at once when the robot is gone, which the broker tells by the
robot's last will. Needs `pip install paho-mqtt` and nothing of edgemm, and a broker (`apt-get install mosquitto`).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt

TICK_S = 0.1


@dataclass
class Switch:
    """Whether the lamp should be on. Times are `time.monotonic()`'s."""

    label: str
    score_min: float
    hold_s: float
    seen_s: float = float("-inf")

    def take(self, event: dict[str, Any], now_s: float) -> None:
        """The next event of the robot."""
        if event["type"] == "labels" and any(self._is_it(label) for label in event["labels"]):
            self.seen_s = now_s
        if event["type"] == "status" and event["state"] in ("lost", "ended"):
            self.seen_s = float("-inf")

    def on(self, now_s: float) -> bool:
        """Whether it was seen within the last `hold_s`."""
        return now_s - self.seen_s <= self.hold_s

    def _is_it(self, label: dict[str, Any]) -> bool:
        return bool(label["label"] == self.label and label["score"] >= self.score_min)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--robot", default="robot", help="the prefix in the URL of edgemm's --sink")
    parser.add_argument("--lamp", default="home/lamp/set")
    parser.add_argument("--label", default="espresso", help="by the bundle's own names")
    parser.add_argument("--score-min", type=float, default=0.5)
    parser.add_argument("--hold", type=float, default=1.0, metavar="SECONDS")
    options = parser.parse_args()
    switch = Switch(options.label, options.score_min, options.hold)

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    # Subscribed at every connection, since the broker may have forgotten who comes back.
    client.on_connect = lambda c, *_: c.subscribe([(f"{options.robot}/{topic}", 1) for topic in ("labels", "status")])
    client.on_message = lambda c, d, message: switch.take(json.loads(message.payload), time.monotonic())
    client.connect(options.host, options.port)
    client.loop_start()
    lit = None
    while True:
        if (on := switch.on(time.monotonic())) != lit:
            client.publish(options.lamp, "ON" if on else "OFF", qos=1, retain=True)
            print("on" if on else "off", flush=True)
            lit = on
        time.sleep(TICK_S)


if __name__ == "__main__":
    main()

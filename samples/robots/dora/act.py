"""A dora node: prints what is seen when that changes, and nods at each new thing.

`head` is the angle that a head should take, float32 [1] in radians, down from straight ahead.
"""

from __future__ import annotations

import json

import pyarrow
from dora import Node

NOD_RAD = 0.3


def main() -> None:
    node, said = Node(), None
    for event in node:
        if event["type"] != "INPUT":
            continue
        text = json.loads(event["value"][0].as_py())["text"]
        if text != said:
            print(f"sees {text}", flush=True)
            node.send_output("head", pyarrow.array([NOD_RAD], pyarrow.float32()))
            said = text


if __name__ == "__main__":
    main()

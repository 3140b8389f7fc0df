"""A dora node: edgemm looks at the pictures that come in, always at the newest, and says what it sees.

`caption` is JSON as of `edgemm run --json`, in an array of one string. BUNDLE is edgemm's own where it is not set.
"""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pyarrow
from dora import Node

import edgemm
from edgemm.live.events import CaptionEvent, to_json


def see(node: Node, live: edgemm.Stream) -> None:
    """Hands the node's pictures to the stream until there are no more."""
    for event in node:
        if event["type"] == "INPUT":
            size = event["metadata"]["height"], event["metadata"]["width"], 3
            # A copy, because the memory is shared with the camera's process.
            live.push_frame(np.array(event["value"], np.uint8).reshape(size))
    live.end_input()


def main() -> None:
    with edgemm.load(os.environ.get("BUNDLE")) as model, edgemm.stream(model, mic="none", tasks=("caption",)) as live:
        node = Node()
        threading.Thread(target=see, args=(node, live), daemon=True).start()
        for event in live:
            if isinstance(event, CaptionEvent):
                node.send_output("caption", pyarrow.array([json.dumps(to_json(event))]))


if __name__ == "__main__":
    main()

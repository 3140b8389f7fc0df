"""The live page in headless chromium on loopback: when it shows something, how old its pictures are, what viewers cost.

    python benchmarks/live_page.py

No model runs while pictures are timed: the test pattern has its own clock painted in (`test://`), which a script in
the page reads where a picture is drawn. Of the viewers for the last figure two come by WebRTC, the others are plain
sockets, in processes of their own at the lowest priority; the default bundle classifies as fast as it can.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import edgemm  # noqa: E402
from edgemm.live.options import StreamOptions  # noqa: E402
from edgemm.live.pipeline import Pipeline  # noqa: E402
from edgemm.live.web import WebSink  # noqa: E402
from tests.live.live_fakes import FakeModel  # noqa: E402
from tests.live.web_browser import CLOCK, Browser, write_wav, write_y4m  # noqa: E402

PATTERN, FLOOD = "test://?size=640x480&fps=15", "test://?size=640x480&fps=500"
VIEWERS = 20
BY_WEBRTC = 2
# Ages in ms of the pictures of some seconds, each where it is drawn; `offset` brings the page's clock to the pattern's.
AGES = """(async () => {
  const canvas = document.querySelector("#video"), pen = canvas.getContext("2d"), ages = [];
  const draw = pen.drawImage.bind(pen);
  pen.drawImage = (...given) => {
    draw(...given);
    ages.push(performance.now() + %f - %s);
  };
  await new Promise((done) => setTimeout(done, %d));
  delete pen.drawImage;
  return ages;
})()"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
READ = """
import select, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
connections = []
for _ in range(int(sys.argv[3])):
    one = socket.create_connection((host, port))
    one.sendall(f"GET /stream.mjpg HTTP/1.1\\r\\nHost: {host}:{port}\\r\\n\\r\\n".encode())
    connections.append(one)
while True:
    for one in select.select(connections, [], [])[0]:
        one.recv(1 << 18)
"""


WATCH = """
import sys, time
from contextlib import ExitStack
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from tests.live.web_rtc import viewer
sink = SimpleNamespace(port=int(sys.argv[2]))
with ExitStack() as stack:
    for _ in range(int(sys.argv[3])):
        assert stack.enter_context(viewer(sink)).watch(sink)[0] == 200
    time.sleep(3600)
"""


def clock_offset_ms(page: Browser) -> float:
    """What to add to the page's `performance.now()` for this process's monotonic clock, low 32 bits, from the quickest
    of many questions."""
    found = []
    for _ in range(50):
        before = time.monotonic()
        theirs = page.js("performance.now()")
        after = time.monotonic()
        found.append((after - before, 500 * (before + after) - theirs))
    offset = min(found)[1]
    return offset - (int(offset) >> 32 << 32)


@contextmanager
def shown(*switches: str, camera: str = PATTERN, **options: object) -> Iterator[tuple[Browser, WebSink]]:
    """A page of a run without a model's work, in a browser."""
    sink = WebSink("127.0.0.1:0")
    pipeline = Pipeline(FakeModel(), StreamOptions(cameras=(camera,), **options), [sink])
    pipeline.start()
    with tempfile.TemporaryDirectory() as profile:
        page = Browser(Path(profile), *switches)
        try:
            yield page, sink
        finally:
            page.close()
            pipeline.stop()


def paint_ms() -> float:
    """When the page first shows something, of a browser that never saw it."""
    with shown() as (page, sink):
        page.open(sink.url)
        page.until(PAINT)
        return float(page.js(PAINT))


def ages_ms(seconds: float, way: str) -> list[float]:
    """How old pictures are where they are drawn, by `way`."""
    with shown() as (page, sink):
        if way == "MJPEG":
            page.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.RTCPeerConnection")
        page.open(sink.url)
        page.until("document.querySelector('#video').width === 640")
        page.until(f"document.querySelector('#way').innerText === 'Pictures by {way}'")
        return list(page.js(AGES % (clock_offset_ms(page), CLOCK, 1000 * seconds)))


def consent_ms() -> float:
    """From consent to the first picture of the viewer's own camera, back on the page."""
    with tempfile.TemporaryDirectory() as folder:
        video, sound = Path(folder, "own.y4m"), Path(folder, "own.wav")
        write_y4m(video)
        write_wav(sound)
        switches = (
            "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-video-capture={video}", f"--use-file-for-fake-audio-capture={sound}",
        )  # fmt: skip
        with shown(*switches, camera="browser://", tasks=("classify",)) as (page, sink):
            page.open(sink.url)
            page.until("!document.querySelector('#own').hidden")
            took = page.js("""(async () => {
              const began = performance.now();
              document.querySelector("#consent").click();
              while (document.querySelector("#video").width !== 320) await new Promise(requestAnimationFrame);
              return performance.now() - began;
            })()""")
            return float(took)


def frames_per_s(viewers: int, seconds: float) -> float:
    """How many pictures the default bundle classifies in a second while so many look on."""
    sink = WebSink("127.0.0.1:0")
    with edgemm.load() as model:
        options = StreamOptions(cameras=(FLOOD,), tasks=("classify",), duration_s=seconds)
        pipeline = Pipeline(model, options, [sink])
        pipeline.start()
        commands = [
            [READ, "127.0.0.1", str(sink.port), str(viewers - BY_WEBRTC)],
            [WATCH, str(ROOT), str(sink.port), str(BY_WEBRTC)],
        ] if viewers else []  # fmt: skip
        looking = [subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", *words]) for words in commands]
        try:
            summary = pipeline.wait()
        finally:
            for one in looking:
                one.kill()
                one.wait()
    return summary.processed / summary.duration_s


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    ages = {way: ages_ms(options.seconds, way) for way in ("MJPEG", "WebRTC")}
    rounds = [(frames_per_s(0, options.seconds), frames_per_s(VIEWERS, options.seconds)) for _ in range(options.rounds)]
    alone, watched = np.median(rounds, axis=0)
    print(json.dumps({
        "first_paint_ms": round(float(np.median([paint_ms() for _ in range(options.rounds)])), 1),
        "first_picture_after_consent_ms": round(float(np.median([consent_ms() for _ in range(options.rounds)])), 1),
        "age_ms_p50": {way: round(float(np.median(found)), 1) for way, found in ages.items()},
        "age_ms_p95": {way: round(float(np.percentile(found, 95)), 1) for way, found in ages.items()},
        "pictures_per_s": {way: round(len(found) / options.seconds, 1) for way, found in ages.items()},
        "frames_per_s": round(float(alone), 1),
        f"frames_per_s_with_{VIEWERS}_viewers": round(float(watched), 1),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()

"""A page's own camera and microphone as the source, in headless chromium on loopback: how late pictures and sound are
stamped, whether they agree, and what they cost, by WebRTC and by WebSocket.

    python benchmarks/own_camera.py

The page's camera is a canvas with the page's clock painted in, and its microphone a tone that is switched every half
second, when that clock is read. No model's work is done but that of a fake one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.live_page import clock_offset_ms  # noqa: E402
from edgemm.live.frames import Frame  # noqa: E402
from edgemm.live.options import StreamOptions  # noqa: E402
from edgemm.live.pipeline import Pipeline  # noqa: E402
from edgemm.live.sinks.base import SinkLimits  # noqa: E402
from edgemm.live.sources.testing import read_clock  # noqa: E402
from edgemm.live.web import WebSink  # noqa: E402
from tests.live.live_fakes import FakeModel, KeepSink, until  # noqa: E402
from tests.live.web_browser import Browser  # noqa: E402

FPS, WARM_S = 30, 3.0  # the page paints as often
DEVICES = """
navigator.mediaDevices.getUserMedia = async () => {
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  canvas.width = 640; canvas.height = 480;
  const context = new AudioContext(), tone = context.createOscillator(), gain = context.createGain();
  const heard = context.createMediaStreamDestination();
  tone.frequency.value = 600;
  tone.connect(gain).connect(heard);
  tone.start();
  window.changes = [];
  let loud = null;
  const paint = () => {
    const now = performance.now(), on = now % 1000 > 500;
    if (on !== loud) { gain.gain.value = on ? 0.5 : 0; if (loud !== null) window.changes.push([now, on]); loud = on; }
    pen.fillStyle = `hsl(${now / 20 % 360} 60% 50%)`;
    pen.fillRect(0, 32, 640, 448);
    for (let bit = 0; bit < 32; bit++) {
      pen.fillStyle = (Math.floor(now) >>> (31 - bit)) & 1 ? "#fff" : "#000";
      pen.fillRect(20 * bit, 0, 20, 32);
    }
  };
  setInterval(paint, 1000 / 30);
  paint();
  await context.resume();
  return new MediaStream([...canvas.captureStream(30).getTracks(), ...heard.stream.getTracks()]);
};
"""


def measure(way: str, seconds: float) -> dict[str, float]:
    """How late frames, and changes of the sound, are stamped after they happened in the page."""
    sink, keep = WebSink("127.0.0.1:0"), KeepSink(SinkLimits(events=10_000, frames=100_000, blocks=100_000))
    options = StreamOptions(cameras=("browser://",), mic="browser://", tasks=("classify", "transcribe"), fps=FPS)
    pipeline = Pipeline(FakeModel(), options, [sink, keep])
    pipeline.start()
    with tempfile.TemporaryDirectory() as profile:
        page = Browser(Path(profile))
        try:
            for script in [DEVICES, *(["delete window.RTCPeerConnection"] if way == "WebSocket" else [])]:
                page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
            assert sink.port
            page.open(sink.url)
            page.until("!document.querySelector('#own').hidden")
            page.js("document.querySelector('#consent').click()")
            page.js("document.querySelector('#listen').checked || document.querySelector('#listen').click()")
            page.until(f"document.querySelector('#own-state').innerText.startsWith('Sent by {way}')")
            until(lambda: pipeline.inputs.counts()["camera"].captured > FPS, 60)
            offset_ms = clock_offset_ms(page) - 1e3 * (time.monotonic() - pipeline.clock.now_s()) % 2**32
            time.sleep(WARM_S)
            cpu_s, began_s = time.process_time(), pipeline.clock.now_s()
            time.sleep(seconds)
            cpu_s = time.process_time() - cpu_s
            changes = [(1e-3 * (at_ms + offset_ms), on) for at_ms, on in page.js("window.changes")]
            assert page.text("#own-state").startswith(f"Sent by {way}")
        finally:
            page.close()
            pipeline.stop()
    frames = [item for item in keep.items if isinstance(item, Frame) and item.t_capture_s > began_s]
    picture_ms = [1e3 * frame.t_capture_s - read_clock(frame.image) - offset_ms for frame in frames]
    sound_ms = [1e3 * late_s for late_s in lateness_s(keep, [one for one in changes if one[0] > began_s])]
    return {
        "pictures_per_s": len(frames) / seconds,
        "picture_ms_p50": float(np.median(picture_ms)),
        "picture_ms_p95": float(np.percentile(picture_ms, 95)),
        "sound_ms_p50": float(np.median(sound_ms)),
        "sound_ms_p95": float(np.percentile(sound_ms, 95)),
        "audio_gaps": len(keep.of("audio_gap")),
        "cpu_s_per_s": cpu_s / seconds,
    }


def lateness_s(keep: KeepSink, changes: list[tuple[float, bool]]) -> list[float]:
    """For each switch of the tone: how much later the blocks say that it was."""
    late = []
    for at_s, on in changes:
        near = [block for block in keep.blocks() if -0.1 < block.t_start_s - at_s < 0.35]
        if not near:
            continue
        loud = np.abs(np.concatenate([block.samples for block in near])) > 0.1
        quiet_for = 32  # samples without a peak of the tone
        spans = np.convolve(loud, np.ones(quiet_for), "full")[: len(loud)] > 0
        changed = quiet_for + np.flatnonzero((spans if on else ~spans)[quiet_for:])
        if len(changed):
            at = int(changed[0]) - (0 if on else quiet_for)
            late.append(near[at // 512].t_start_s + at % 512 / 16_000 - at_s)
    return late


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    for way in ("WebRTC", "WebSocket"):
        figures = measure(way, options.seconds)
        print(json.dumps({"way": way, **{name: round(value, 2) for name, value in figures.items()}}), flush=True)


if __name__ == "__main__":
    main()

"""Debian's chromium, driven by the DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
import wave
from pathlib import Path

import av
import numpy as np
import pytest

connect = pytest.importorskip("websockets.sync.client", reason="the extra sinks is not installed").connect

SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--mute-audio",
    "--autoplay-policy=no-user-gesture-required", "--remote-debugging-port=0", "--window-size=1280,900",
)  # fmt: skip

# The milliseconds that the test pattern has painted into the picture that is shown.
CLOCK = """(() => {
  const video = document.querySelector("#video");
  const row = video.getContext("2d").getImageData(0, Math.floor(video.height / 30), video.width, 1).data;
  let painted = 0;
  for (let bit = 0; bit < 32; bit++)
    painted = painted * 2 + (row[4 * Math.floor((bit + 0.5) * video.width / 32)] > 127 ? 1 : 0);
  return painted;
})()"""
CLIP = Path(__file__).parents[2] / "samples" / "clip" / "clip.mp4"


def chromium():
    """The path of the browser; the test is skipped where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    return path


class Browser:
    """One headless chromium with one page."""

    def __init__(self, profile, *switches):
        self._process = subprocess.Popen(
            [chromium(), *SWITCHES, f"--user-data-dir={profile}", *switches, "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.messages = []
        try:
            self._connect(profile)
        except BaseException:
            self._process.kill()
            self._process.wait(10)
            raise

    def _connect(self, profile):
        told = profile / "DevToolsActivePort"
        self._wait(lambda: told.exists() and told.read_text().count("\n"), 60)
        port = told.read_text().split("\n")[0]
        self._wait(lambda: self._targets(port), 60)
        self._socket = connect(self._targets(port)[0]["webSocketDebuggerUrl"], max_size=None, proxy=None).__enter__()
        self._ids = itertools.count(1)
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.call("Page.enable")

    def call(self, method, **params):
        """The result of a command; events on the way are kept."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.messages.append(message)

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.until("location.protocol.startsWith('http') && document.readyState === 'complete'")

    def js(self, expression):
        """The value of an expression, promises awaited."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, expression, timeout_s=30.0):
        return self._wait(lambda: self.js(expression), timeout_s, expression)

    def text(self, selector):
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def type(self, selector, text):
        """Types into a field and presses Enter."""
        self.js(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            key = {"text": "\r"} if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, **key)

    def look(self, path, *, width=1280, height=900, dark=False, phone=False):
        """A screenshot (PNG)."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        time.sleep(0.5)
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def errors(self):
        """What the page threw or the browser complained about."""
        return [
            message for message in self.messages
            if message["method"] == "Runtime.exceptionThrown"
            or (message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error")
        ]  # fmt: skip

    def close(self):
        """Kills it."""
        self._process.kill()
        self._process.wait(10)
        self._socket.__exit__(None, None, None)

    def _targets(self, port):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                return [target for target in json.load(answer) if target["type"] == "page"]
        except OSError:  # it is still starting
            return []

    def _wait(self, ready, timeout_s, what="it"):
        deadline = time.monotonic() + timeout_s
        while not (value := ready()):
            assert time.monotonic() < deadline, f"{what} did not come true"
            time.sleep(0.05)
        return value


def write_y4m(path):
    """A second of a bar that moves, 320 x 240, as a browser's camera."""
    frames = b""
    for n in range(30):
        luma = np.full((240, 320), 60, np.uint8)
        luma[:, n * 10 : n * 10 + 30] = 230
        frames += b"FRAME\n" + luma.tobytes() + np.full(320 * 240 // 2, 128, np.uint8).tobytes()
    path.write_bytes(b"YUV4MPEG2 W320 H240 F15:1 Ip A1:1 C420jpeg\n" + frames)


def write_clip(path):
    """The clip's first two seconds, 320 x 240, as a browser's camera."""
    with av.open(str(CLIP)) as clip, path.open("wb") as out:
        out.write(b"YUV4MPEG2 W320 H240 F15:1 Ip A1:1 C420jpeg\n")
        for frame in itertools.islice(clip.decode(video=0), 30):
            out.write(b"FRAME\n" + frame.reformat(320, 240, "yuv420p").to_ndarray().tobytes())


def write_question(path, text):
    """Somebody who asks (flite, whose words are heard as they are written) and is silent for 4 s, again and again."""
    if shutil.which("flite") is None:
        pytest.skip("flite is not installed (apt-get install flite)")
    subprocess.run(["flite", "-voice", "slt", "-t", text, "-o", path], check=True)
    with wave.open(str(path)) as spoken:
        parameters, data = spoken.getparams(), spoken.readframes(spoken.getnframes())
    with wave.open(str(path), "wb") as out:
        out.setparams(parameters)
        out.writeframes(data + bytes(4 * parameters.framerate * parameters.sampwidth))


def write_wav(path):
    """The clip's speech as a browser's microphone: browsers take a tone for noise and suppress it."""
    resampler = av.AudioResampler("s16", "mono", 16_000)
    with av.open(str(CLIP)) as clip, wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        for frame in clip.decode(audio=0):
            for piece in resampler.resample(frame):
                out.writeframes(piece.to_ndarray().tobytes())

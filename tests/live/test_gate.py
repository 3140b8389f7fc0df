"""The on-change gate: noise and slow light leave it shut, what comes in opens it, and the books stay exact."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import av
import numpy as np
import pytest

from edgemm.cli import args
from edgemm.errors import UsageError
from edgemm.live.gate import LONGEST_S, ChangeGate
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from tests.live.live_fakes import FakeModel, KeepSink, write_video

CLIP = Path(__file__).resolve().parents[2] / "samples" / "clip" / "clip.mp4"
FPS = 30


def room(size_px: tuple[int, int] = (640, 480)) -> np.ndarray:
    """float32 [H, W, 3]: a lit wall, a dark table, a striped curtain."""
    width, height = size_px
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    wall = 120 + 60 * x / width - 30 * y / height
    wall[int(0.7 * height) :] = 50
    wall[:, : width // 6] += 30 * np.sign(np.sin(x[:, : width // 6] / 5))
    return np.stack([wall, 0.9 * wall, 0.8 * wall], axis=-1)


def seen(image: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3]: what a sensor makes of it."""
    grain = noise * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def looks(frames, every_s: float = 1 / FPS) -> list[int]:  # type: ignore[no-untyped-def]
    """The numbers of the frames that were looked at."""
    gate, told = ChangeGate(), []
    for number, image in enumerate(frames):
        if gate.changed(image, number * every_s):
            gate.looked()
            told.append(number)
    return told


@pytest.mark.parametrize("noise", [0.0, 4.0, 12.0, 25.0])
def test_noise_leaves_it_shut(noise: float) -> None:
    rng = np.random.default_rng(1)
    assert looks(seen(room(), noise, rng) for _ in range(60)) == [0]


def test_slow_light_leaves_it_shut() -> None:
    rng, still = np.random.default_rng(2), room()
    window = np.linspace(1.0, 0.2, still.shape[1], dtype=np.float32)[None, :, None]
    dawn = (seen(still * 0.7 + 3.0 * t * window, 6.0, rng) for t in np.arange(0, 9.9, 0.1))
    assert looks(dawn, 0.1) == [0]


def test_flicker_of_a_lamp_leaves_it_shut() -> None:
    rng, still = np.random.default_rng(3), room()
    assert looks(seen(still + 6 * np.sin(2.1 * n), 4.0, rng) for n in range(60)) == [0]


@pytest.mark.parametrize("size_px", [(640, 480), (320, 240), (1280, 720)])
@pytest.mark.parametrize("contrast", [40, -35])
def test_what_comes_in_opens_it_at_once(size_px: tuple[int, int], contrast: int) -> None:
    rng, side = np.random.default_rng(4), size_px[0] // 12

    def frames():  # type: ignore[no-untyped-def]
        for n in range(50):
            image = room(size_px)
            if n >= 30:
                image[side : 2 * side, 4 * side : 5 * side] += contrast
            yield seen(image, 8.0, rng)

    assert looks(frames()) == [0, 30], "opened when it came, and shut when it stayed"


def test_what_comes_in_slowly_opens_it_too() -> None:
    rng = np.random.default_rng(5)

    def frames():  # type: ignore[no-untyped-def]
        for n in range(80):
            image = room()
            image[200:300, : max(0, n - 20)] = 240  # a pixel a frame
            yield seen(image, 6.0, rng)

    told = looks(frames())
    assert told[0] == 0
    assert 20 < told[1] <= 26


def test_the_light_switch_opens_it() -> None:
    rng = np.random.default_rng(6)
    assert looks(seen(room() * (1.0 if n < 20 else 0.3), 6.0, rng) for n in range(40)) == [0, 20]


def test_a_still_scene_is_looked_at_now_and_then() -> None:
    image = room().astype(np.uint8)
    told = [n / 2 for n in looks((image for _ in range(65)), 0.5)]
    assert told == [0.0, LONGEST_S, 2 * LONGEST_S, 3 * LONGEST_S]
    gate = ChangeGate()
    assert gate.changed(image, 50.0)
    gate.looked()
    assert gate.changed(image, 3.0), "time went back: another scene"


def test_the_sample_clip() -> None:
    with av.open(str(CLIP)) as container:
        frames = [(float(f.time), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    cells = [np.abs(b[::8, ::8].astype(int) - a[::8, ::8]).mean() for (_, a), (_, b) in itertools.pairwise(frames)]
    cuts = {n + 1 for n, apart in enumerate(cells) if apart > 25}
    gate, told = ChangeGate(), []
    for number, (t_s, image) in enumerate(frames):
        if gate.changed(image, t_s):
            gate.looked()
            told.append(number)
    assert cuts
    assert cuts <= set(told)
    print(len(told), "of", len(frames), "cuts", sorted(cuts))


def test_what_it_costs() -> None:
    image, gate = seen(room(), 8.0, np.random.default_rng(7)), ChangeGate()
    took_ms = []
    for n in range(300):
        began = time.perf_counter()
        gate.changed(image, n / FPS)
        took_ms.append(1e3 * (time.perf_counter() - began))
        if not n:
            gate.looked()
    assert np.percentile(took_ms, 20) <= 0.3  # what a shared machine adds is not its own
    print("median", np.median(took_ms))


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s of a still room with grain, into which something comes half way."""
    rng, frames = np.random.default_rng(8), []
    for n in range(60):
        image = room((320, 240))
        if n >= 30:
            image[100:160, 100:160] = 20
        frames.append(seen(image, 3.0, rng))
    return write_video(tmp_path_factory.mktemp("gate") / "visit.mp4", frames)


def played(path: Path, **options):  # type: ignore[no-untyped-def]
    keep = KeepSink()
    told = StreamOptions(cameras=(str(path),), as_fast_as_possible=True, on_change=True, **options)
    return keep, Pipeline(FakeModel(), told, [keep]).run()


def test_in_a_run(visit: Path) -> None:
    keep, summary = played(visit, tasks=("classify",))
    assert [event.frame for event in keep.of("labels")] == [0, 30]  # type: ignore[attr-defined]
    assert (summary.captured, summary.processed, summary.in_flight) == (60, 2, 0)
    assert summary.dropped == {"unchanged": 58}


def test_a_change_within_the_pause_is_looked_at_after_it(visit: Path) -> None:
    keep, summary = played(visit, tasks=("classify",), every_s=1.2)
    assert [event.frame for event in keep.of("labels")] == [0, 36]  # type: ignore[attr-defined]
    assert summary.dropped == {"unchanged": 52, "paced": 6}


def test_a_question_does_not_wait_for_a_change(visit: Path) -> None:
    keep, summary = played(visit, ask=("what?", "where?"))
    assert [event.frames for event in keep.of("answer")] == [(0,), (1,)]  # type: ignore[attr-defined]
    assert [event.frame for event in keep.of("labels")] == [0, 30]  # type: ignore[attr-defined]
    assert summary.processed + summary.dropped["unchanged"] == 60


def test_how_it_is_written() -> None:
    assert args.every(None) == (0.0, False)
    assert args.every("0.5s") == (0.5, False)
    assert args.every("change") == (0.0, True)
    assert args.every("change:0.5s") == (0.5, True)
    for text in ("changes", "change:", "change:soon"):
        with pytest.raises(UsageError, match="--every"):
            args.every(text)

"""The public stream: iterated, awaited, looked at, fed, stopped."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from edgemm.errors import InputError, SourceError, TaskUnavailable, UsageError
from edgemm.live.stream import stream
from tests.live.live_fakes import FakeModel, speech_like

RED = np.full((48, 64, 3), (255, 0, 0), np.uint8)
BLUE = np.full((48, 64, 3), (0, 0, 255), np.uint8)


def wait_for(condition, timeout_s=3.0):
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return result


def test_iteration_gives_everything_in_order(silent_clip):
    with stream(FakeModel(), camera=str(silent_clip), as_fast_as_possible=True) as live:
        events = list(live)
    assert events[0].type == "started"
    assert events[-1].type == "summary"
    assert [event.id for event in events] == list(range(len(events)))
    assert sum(event.type == "labels" for event in events) == 60


def test_async_iteration_is_the_same(silent_clip):
    async def collect():
        ticks, types = 0, []

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticker = asyncio.create_task(tick())
        with stream(FakeModel(work_s=0.005), camera=str(silent_clip)) as live:
            async for event in live:
                types.append(event.type)
        ticker.cancel()
        return types, ticks

    types, ticks = asyncio.run(collect())
    assert types[0] == "started"
    assert types[-1] == "summary"
    assert types.count("labels") > 50
    assert ticks > 50  # two seconds long the event loop was free


def test_a_slow_reader_does_not_slow_the_model(silent_clip):
    with stream(FakeModel(), camera=str(silent_clip)) as live:
        for event in live:
            time.sleep(0.03)
            if event.type == "summary":
                break
    assert event.processed > 55
    assert event.overhead_ms.p99 <= 20


def test_pushed_frames_and_latest():
    with stream(FakeModel()) as live:
        assert live.latest("labels") is None
        number = live.push_frame(RED)
        event = wait_for(lambda: live.latest("labels"))
        assert (event.frame, event.labels[0].label) == (number, "red")
        stamp_s = live.now_s - 0.2
        live.push_frame(BLUE, t_capture_s=stamp_s)
        event = wait_for(lambda: (e := live.latest("labels")) and e.frame == 1 and e)
        assert event.labels[0].label == "blue"
        assert event.t_capture_s == stamp_s
        assert event.latency_ms >= 200
        assert live.latest("labels", max_age_s=10) is event
        time.sleep(0.05)
        assert live.latest("labels", max_age_s=0.04) is None
        with pytest.raises(UsageError, match="no event"):
            live.latest("label")


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_pushed_sound_is_transcribed(rate_hz):
    sound = speech_like(2.0, [(0.5, 1.2)])
    at = np.arange(int(2.0 * rate_hz)) / rate_hz
    sound = np.interp(at, np.arange(len(sound)) / 16_000, sound).astype(np.float32)
    with stream(FakeModel()) as live:
        for piece in np.array_split(sound, 37):
            live.push_audio(piece, sample_rate_hz=rate_hz)
        live.end_input()
        events = list(live)
    (transcript,) = [event for event in events if event.type == "transcript" and event.final]
    assert transcript.t_end_s - transcript.t_start_s == pytest.approx(0.7 + 0.25 + 0.2, abs=0.1)
    assert events[-1].audio_s == pytest.approx(2.0, abs=0.1)


def test_questions_while_it_runs():
    with stream(FakeModel()) as live:
        first = live.ask("is the door open?")
        second = live.ask("and now?")
        assert (first, second) == (0, 1)
        live.push_frame(RED)
        wait_for(lambda: live.latest("answer"))
        live.push_frame(BLUE)
        answer = wait_for(lambda: (e := live.latest("answer")) and e.question_id == 1 and e)
        assert (answer.question, answer.frames) == ("and now?", (1,))


def test_what_cannot_be_pushed_or_asked(silent_clip):
    with stream(FakeModel(tasks=["classify"]), camera=str(silent_clip), mic="none") as live:
        with pytest.raises(UsageError, match="camera of its own"):
            live.push_frame(RED)
        with pytest.raises(UsageError, match="no pushed sound"):
            live.push_audio(np.zeros(512, np.float32))
        with pytest.raises(TaskUnavailable):
            live.ask("what?")
    with stream(FakeModel()) as live:
        with pytest.raises(InputError, match="uint8"):
            live.push_frame(RED.astype(np.float32))
        with pytest.raises(InputError, match="float32"):
            live.push_audio(np.zeros(512, np.int16))


def test_iteration_raises_what_ended_the_run(tmp_path):
    with (
        stream(FakeModel(), camera=str(tmp_path / "missing.mp4")) as live,
        pytest.raises(SourceError, match=r"missing\.mp4"),
    ):
        list(live)


def test_a_reader_in_another_thread_is_woken_by_stop():
    live = stream(FakeModel(), camera="test://")
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(live))
    reader.start()
    wait_for(lambda: len(seen) > 10)
    began = time.monotonic()
    live.stop()
    reader.join(1.0)
    assert not reader.is_alive()
    assert time.monotonic() - began <= 1.0
    assert seen[-1].type == "summary"
    live.stop()  # a second time does nothing

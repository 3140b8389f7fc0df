"""Answers said aloud: by flite, and by scripts that keep what they were given."""

from __future__ import annotations

import os
import shutil
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from edgemm.errors import EdgemmError, RuntimeUnavailable, UsageError
from edgemm.live.events import AnswerEvent, InterruptedEvent
from edgemm.live.hearing import MUTE_TAIL_S
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks import speak
from edgemm.live.sinks.base import SinkContext
from edgemm.live.sinks.registry import as_sinks
from edgemm.live.sinks.speak import SpeakSink
from edgemm.live.speech import CHUNK_S
from edgemm.live.stream import stream
from tests.live.live_fakes import FakeModel, KeepSink, speech_like, until
from tests.live.live_room import Room, pattern

RED = np.full((48, 64, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def voice(tmp_path):
    """Makes a command that appends its last argument to `said`, its process to `pids`, and lasts."""

    def make(lasts_s=0.0, *, name="talk", code=0, errors=""):
        path = tmp_path / name
        path.write_text(
            "#!/bin/sh\n"
            f'for last; do :; done; printf "%s\\n" "$last" >> {tmp_path}/said; echo $$ >> {tmp_path}/pids\n'
            f"sleep {lasts_s}\necho '{errors}' >&2\nexit {code}\n"
        )
        path.chmod(0o755)
        return f"speak://{path}"

    make.said = lambda: _lines(tmp_path / "said")
    make.pids = lambda: [int(pid) for pid in _lines(tmp_path / "pids")]
    return make


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def alive(pid):
    """Whether anything of the command's process group runs."""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def answer(text):
    return AnswerEvent(
        question_id=0, question="?", text=text, frames=(0,), t_capture_s=0.0, ttft_ms=1.0, model_ms=1.0, latency_ms=1.0
    )


class Opened:
    """A sink that is open, with what it told its pipeline."""

    def __init__(self, url):
        self.errors: list[EdgemmError] = []
        self.talks: list[tuple[bool, bool]] = []
        self.stopping = False
        self.sink = SpeakSink(url)
        self.sink.open(
            SinkContext(
                has_picture=True,
                has_sound=True,
                media_time=False,
                wall_offset_s=0.0,
                stop=lambda: None,
                report=self.errors.append,
                stopping=lambda: self.stopping,
                talking=lambda on, mute: self.talks.append((on, mute)),
            )
        )

    def say(self, *texts):
        for text in texts:
            self.sink.handle(answer(text))


def say_aloud(live):
    """Speech as it would come from a microphone."""
    for piece in np.array_split(speech_like(1.5, [(0.1, 1.2)]), 30):
        time.sleep(0.05)
        live.push_audio(piece)
    time.sleep(0.3)


@pytest.mark.skipif(not shutil.which("flite"), reason="flite is not installed")
def test_flite_says_the_answer_before_the_run_ends(silent_clip, tmp_path):
    out = tmp_path / "said.wav"
    options = StreamOptions(cameras=(str(silent_clip),), ask=("where?",), as_fast_as_possible=True)
    keep = KeepSink()
    Pipeline(FakeModel(), options, [keep, f"speak://flite -t {{text}} -o {out}"]).run()
    assert not keep.of("error")
    with wave.open(str(out)) as sound:
        assert 0.3 < sound.getnframes() / sound.getframerate() < 5.0
        samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16)
    assert np.abs(samples).max() > 1000


def test_the_first_that_is_installed_is_taken(voice, monkeypatch, tmp_path):
    voice(name="say")
    voice(name="spd-say")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(speak, "KNOWN", tuple(known for known in speak.KNOWN if "say" in known[0]))
    opened = Opened("speak://")
    opened.say("it is here")
    opened.sink.close()
    assert voice.said() == ["it is here"]
    assert opened.sink._command[0] == str(tmp_path / "say")


def test_a_command_that_is_not_there_ends_the_run(silent_clip, monkeypatch):
    options = StreamOptions(cameras=(str(silent_clip),))
    with pytest.raises(RuntimeUnavailable, match="no-such-voice"):
        Pipeline(FakeModel(), options, ["speak://no-such-voice -x"]).run()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeUnavailable, match="espeak-ng") as error:
        Pipeline(FakeModel(), options, ["speak://"]).run()
    assert "apt-get install" in error.value.hint


@pytest.mark.parametrize("url", ["speak://x?mute=perhaps", "speak://x?sound=no", "speak://x 'y"])
def test_wrong_urls(url):
    with pytest.raises(UsageError):
        as_sinks([url])


def test_no_shell_and_no_options_come_of_a_text(voice, tmp_path):
    opened = Opened(voice())
    for text in ("; touch x `id` $HOME", "--help", "-o /etc/x", "{text}"):
        opened.say(text)
        until(lambda text=text: len(voice.said()) and voice.said()[-1].strip() == text)
    opened.sink.close()
    assert voice.said() == ["; touch x `id` $HOME", " --help", " -o /etc/x", "{text}"]
    opened = Opened(f"{voice()} a '<{{text}}>'")
    opened.say("in quotes")
    opened.sink.close()
    assert voice.said()[-1] == "<in quotes>"


def test_one_at_a_time_and_the_newest_waits(voice):
    opened = Opened(voice(0.5))
    opened.say("one")
    until(voice.said)
    opened.say("two", "three", "  ")
    opened.sink.close()
    assert voice.said() == ["one", "three"]
    assert opened.talks == [(True, True), (False, True)] * 2


def test_interrupted_kills_it_and_forgets_what_waits(voice):
    opened = Opened(voice(60))
    opened.say("one")
    until(voice.pids)
    opened.say("two")
    opened.sink.handle(InterruptedEvent(what="answer"))
    (pid,) = voice.pids()
    until(lambda: not alive(pid))
    until(lambda: opened.talks == [(True, True), (False, True)])
    assert voice.said() == ["one"]
    opened.say("three")
    until(lambda: voice.said() == ["one", "three"])
    opened.stopping = True
    opened.sink.close()
    until(lambda: not alive(voice.pids()[-1]))
    assert not opened.errors  # to be killed is no failure


def test_a_command_that_fails_is_reported_and_the_next_answer_is_said(voice):
    opened = Opened(voice(code=3, errors="no sound card"))
    opened.say("one")
    until(lambda: opened.errors)
    opened.say("two")
    opened.sink.close()
    assert [error.message.endswith("talk failed: no sound card") for error in opened.errors] == [True, True]
    assert voice.said() == ["one", "two"]


def test_a_command_that_hangs_is_ended(voice, monkeypatch):
    monkeypatch.setattr(speak, "LONGEST_S", 0.3)
    opened = Opened(voice(60))
    opened.say("one")
    opened.sink.close()
    (error,) = opened.errors
    assert "was ended" in error.message
    until(lambda: not alive(voice.pids()[0]))


def test_a_stop_silences_it(voice):
    keep = KeepSink()
    options = StreamOptions(cameras=("test://",), ask=("where?",), tasks=("answer",))
    pipeline = Pipeline(FakeModel(), options, [keep, voice(60)])
    pipeline.start()
    until(voice.pids)
    pipeline.stop()
    until(lambda: not alive(voice.pids()[0]), timeout_s=5.0)
    assert keep.events[-1].type == "summary"


def test_what_it_says_itself_is_not_heard(voice):
    with stream(FakeModel(), sinks=[voice(60)]) as live:
        live.ask("where?")
        live.push_frame(RED)
        until(voice.pids)
        say_aloud(live)
        assert live.latest("speech") is None
        assert live.latest("interrupted") is None
        assert alive(voice.pids()[0])


def test_unless_told_so_and_then_speech_silences_it(voice):
    with stream(FakeModel(), sinks=[f"{voice(60)}?mute=no"]) as live:
        live.ask("where?")
        live.push_frame(RED)
        until(voice.pids)
        say_aloud(live)
        until(lambda: live.latest("interrupted"))
        until(lambda: not alive(voice.pids()[0]))
        until(lambda: live.latest("speech"))


def test_muted_is_silence_until_the_echo_is_over():
    begin, end = 20, 20 + round(2.0 / CHUNK_S)
    at = {begin: lambda worker: worker.mute(True), end: lambda worker: worker.mute(False)}
    room = Room("." * 20 + pattern(2.0, 2.0), at=at)
    assert not room.events
    room = Room("." * 20 + pattern(4.0, 2.0), at=at)
    start = next(event for event in room.events if event.type == "speech")
    assert start.t_s >= end * CHUNK_S + MUTE_TAIL_S
    (final,) = room.of(final=True)
    assert final.t_end_s == pytest.approx(20 * CHUNK_S + 4.0 + 0.2, abs=0.05)
    voiced = round((4.0 - 2.0 - MUTE_TAIL_S) / CHUNK_S)
    assert len(final.text.split()) == pytest.approx(voiced, abs=2)


def test_mute_again_within_the_tail_is_one_silence():
    at = {20: lambda w: w.mute(True), 40: lambda w: w.mute(False), 44: lambda w: w.mute(True)}
    assert not Room("." * 20 + pattern(3.0, 2.0), at=at).events

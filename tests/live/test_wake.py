"""What is said aloud and is a question."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgemm.errors import TaskUnavailable, UsageError
from edgemm.live.asking import OPEN_S, SpokenQuestions
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.speech import Utterance
from tests.live.live_fakes import FakeModel, KeepSink


def asked(*said, wake=("hey robot",), pause_s=1.0):
    """The questions among texts of 1 s each, `pause_s` apart."""
    questions = []
    spoken = SpokenQuestions(wake, questions.append)
    for n, text in enumerate(said):
        start_s = n * (1.0 + pause_s)
        spoken.said(text, Utterance(n, np.zeros(16_000, np.float32), start_s, start_s + 1.0))
    return questions


def test_without_a_wake_phrase_the_question_mark_counts():
    assert asked("Where is it?", "It is here.", "", wake=()) == ["Where is it?"]


@pytest.mark.parametrize(
    ("said", "question"),
    [
        ("Hey robot, where is it?", "where is it?"),
        ("hey, Robot! Turn around.", "Turn around."),
        ("Well, HEY ROBOT what is that", "what is that"),
        ("Where is it?", None),
        ("They robot where is it?", None),
        ("Hey robots, where is it?", None),
        ("Hey you, robot, where is it?", None),
        ("", None),
    ],
)
def test_what_follows_the_phrase_is_the_question(said, question):
    assert asked(said) == ([question] if question else [])


def test_the_phrase_alone_opens_the_next_utterance():
    assert asked("Hey robot.", "", "Where is it", "And what else?") == ["Where is it"]
    assert asked("Hey robot.", "Where is it?", pause_s=OPEN_S + 0.1) == []


def test_several_phrases_and_awkward_ones():
    assert asked("Computer: go.", "Hey robot, stop.", "C-3PO, wait.", wake=("hey robot", "computer", "c-3po")) == [
        "go.", "stop.", "wait.",
    ]  # fmt: skip
    assert asked("Was? Hör mal, Robo, wo?", wake=("hör mal robo",)) == ["wo?"]


class Hears(FakeModel):
    """Says one text an utterance."""

    def __init__(self, *texts):
        super().__init__()
        self._texts = iter(texts)

    def transcribe(self, samples, **given):
        return replace(super().transcribe(samples, **given), text=next(self._texts))


def test_only_what_was_meant_is_answered(talking_clip):
    keep = KeepSink()
    options = StreamOptions(cameras=(str(talking_clip),), as_fast_as_possible=True, wake=("hey robot",))
    Pipeline(Hears("Is this one?", "Hey robot, what is that?"), options, [keep]).run()
    assert [event.text for event in keep.of("transcript")] == ["Is this one?", "Hey robot, what is that?"]
    assert {event.question for event in keep.of("answer")} == {"what is that?"}


def test_a_phrase_that_nothing_can_come_of_is_refused(talking_clip, silent_clip):
    with pytest.raises(UsageError, match="no words"):
        StreamOptions(wake=("?!",))
    with pytest.raises(UsageError, match="no microphone"):
        Pipeline(FakeModel(), StreamOptions((str(silent_clip),), wake=("robot",)))
    with pytest.raises(UsageError, match="no camera"):
        Pipeline(FakeModel(), StreamOptions(mic=str(talking_clip), wake=("robot",)))
    with pytest.raises(TaskUnavailable, match="answer"):
        Pipeline(FakeModel(tasks=["transcribe"]), StreamOptions((str(talking_clip),), wake=("robot",)))


def test_the_flag_reaches_the_pipeline(talking_clip, monkeypatch):
    from edgemm.cli.app import invoke

    given = []
    monkeypatch.setattr("edgemm.cli.args.load", lambda *args, **kwargs: FakeModel())
    monkeypatch.setattr(Pipeline, "run", lambda self: given.append(self._options))
    argv = ["run", "--quiet", "--no-show", "--camera", str(talking_clip), "--wake", "hey robot", "--wake", "computer"]
    assert invoke(argv) == 0
    assert given[0].wake == ("hey robot", "computer")

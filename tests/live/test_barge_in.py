"""Speech cuts off an answer."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from edgemm.errors import UsageError
from edgemm.live.answering import Answering, Question
from edgemm.live.clock import Clock
from edgemm.live.emitter import Emitter
from edgemm.live.events import AnswerDeltaEvent
from edgemm.live.frames import Frame
from edgemm.live.options import SpeechOptions, StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.base import SinkLimits, SinkQueue
from edgemm.live.speech import CHUNK_S, CHUNK_SAMPLES, SpeechPolicy
from edgemm.live.stats import RunStats
from edgemm.live.stream import stream
from edgemm.results import Answer
from tests.live.live_fakes import FakeModel, KeepSink, speech_like, until

RED = np.full((48, 64, 3), (255, 0, 0), np.uint8)
PROBABILITY = {"s": 0.9, ".": 0.05}


def barge_ins(pattern, options=None):
    """The chunks from which on there is enough voice."""
    policy, found = SpeechPolicy(options), []
    for n, letter in enumerate(pattern):
        policy.push(np.zeros(CHUNK_SAMPLES, np.float32), PROBABILITY[letter], n * CHUNK_S)
        found += [n] * policy.barging_in
    return found


def test_voice_is_enough_within_130_ms_and_once():
    """Of the 250 ms from the first sound to `interrupted` the rest is the microphone's and the voice model's."""
    (found,) = barge_ins("." * 20 + "s" * 60 + "." * 30)
    assert (found + 1 - 20) * CHUNK_S <= 0.13
    assert len(barge_ins("." * 20 + ("s" * 60 + "." * 30) * 3)) == 3


def test_a_click_is_no_barge_in():
    assert barge_ins(("." * 20 + "sss") * 5) == []


def test_it_can_be_switched_off():
    assert barge_ins("." * 20 + "s" * 60, SpeechOptions(barge_in_s=None)) == []
    with pytest.raises(UsageError, match="barge_in_s"):
        SpeechOptions(barge_in_s=0.0)


class Chatty(FakeModel):
    """Answers in 1 000 pieces, each when it is let."""

    def __init__(self):
        super().__init__()
        self.let = threading.Semaphore(0)
        self.pieces = 0

    def answer(self, frames, question, *, max_new_tokens=64, on_text=None):
        for _ in range(1000):
            self.let.acquire()
            self.pieces += 1
            on_text("la ")
        return Answer("la " * 1000, (), 0.9, 1.0, 1.0)


def answering(model):
    stats, clock = RunStats(), Clock()
    emitter, queue = Emitter(clock, stats), SinkQueue(SinkLimits(events=10_000))
    emitter.attach("test", queue)
    stop = threading.Event()
    return Answering(model, 64, clock=clock, emitter=emitter, stats=stats, stop=stop), queue, stop


FRAME = Frame(image=RED, id=7, source="camera", t_capture_s=0.0)


def test_interrupted_is_told_at_once_and_nothing_follows():
    model = Chatty()
    answers, queue, _ = answering(model)
    answers.ask(Question(0, "what?"))
    answers.interrupt()  # none is being given: the question is kept
    assert answers.waiting
    worker = threading.Thread(target=answers.answer, args=(FRAME, answers.next()), daemon=True)
    worker.start()
    model.let.release(3)
    assert [queue.get(5).type for _ in range(3)] == ["answer_delta"] * 3
    answers.interrupt()  # the model waits inside its own loop
    answers.interrupt()
    event = queue.get(0)
    assert (event.type, event.what, event.source) == ("interrupted", "answer", "camera")
    model.let.release(1000)
    worker.join(5)
    assert not worker.is_alive()
    assert model.pieces == 4
    assert queue.empty


def test_an_answer_that_was_just_finished_is_not_interrupted():
    answers, queue, _ = answering(FakeModel())
    answers.ask(Question(0, "what?"))
    assert answers.answer(FRAME, answers.next())
    answers.interrupt()
    queue.close()
    assert [event.type for event in iter(queue.get, None)] == ["answer_delta"] * 3 + ["answer"]


def test_an_answer_that_is_done_after_it_was_interrupted_is_not_told():
    class Deaf(FakeModel):
        """Finishes without another piece."""

        def answer(self, frames, question, *, max_new_tokens=64, on_text=None):
            answers.interrupt()
            return Answer("it is here", (), 0.9, 1.0, 1.0)

    answers, queue, _ = answering(Deaf())
    answers.ask(Question(0, "what?"))
    assert not answers.answer(FRAME, answers.next())
    queue.close()
    assert [event.type for event in iter(queue.get, None)] == ["interrupted"]


def test_a_stop_interrupts_once():
    model = Chatty()
    answers, queue, stop = answering(model)
    answers.ask(Question(0, "what?"))
    stop.set()
    model.let.release(1000)
    assert not answers.answer(FRAME, answers.next())
    queue.close()
    assert [event.type for event in iter(queue.get, None)] == ["interrupted"]


def test_who_speaks_cuts_off_the_answer_and_the_next_question_is_answered():
    model = Chatty()
    with stream(model) as live:
        live.ask("what is that?")
        live.push_frame(RED)
        model.let.release(2)
        until(lambda: model.pieces == 2)
        live.push_audio(speech_like(0.5, [(0.0, 0.09)]))  # too short
        time.sleep(0.2)
        assert live.latest("interrupted") is None
        live.push_audio(speech_like(0.4, [(0.1, 0.4)]))
        until(lambda: live.latest("interrupted"))
        model.let.release(5000)
        live.ask("and now?")
        live.push_frame(RED)
        until(lambda: live.latest("answer"))
        live.end_input()
        events = list(live)
    assert [event.what for event in events if event.type == "interrupted"] == ["answer"]
    (cut,) = [n for n, event in enumerate(events) if event.type == "interrupted"]
    assert {event.question_id for event in events[:cut] if isinstance(event, AnswerDeltaEvent)} == {0}
    assert {event.question_id for event in events[cut:] if isinstance(event, AnswerDeltaEvent)} == {1}
    assert [event.question for event in events if event.type == "answer"] == ["and now?"]
    assert (events[-1].captured, events[-1].in_flight) == (2, 0)


def test_as_fast_as_possible_nothing_is_cut_off(talking_clip):
    keep = KeepSink()
    options = StreamOptions(cameras=(str(talking_clip),), as_fast_as_possible=True, ask=("where?",))
    Pipeline(FakeModel(work_s=0.1), options, [keep]).run()
    assert len(keep.of("answer")) == 1
    assert not keep.of("interrupted")

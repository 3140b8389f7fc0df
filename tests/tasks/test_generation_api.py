"""How a caller says how to generate: one object, keywords, or both."""

from __future__ import annotations

import json
import sys
from dataclasses import fields

import pytest
from jsonschema import validate

import edgemm
from edgemm.decoding.options import GenerationKeywords, chosen
from edgemm.decoding.stops import Shown, before_stop
from edgemm.errors import InputError, RuntimeUnavailable
from tests.export.exported import RUNTIMES, model, picture, sound

STEPS = 16
SCHEMA = {
    "type": "object",
    "properties": {"door": {"enum": ["open", "closed"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["door", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=RUNTIMES)
def answers(request):
    with model("smolvlm", request.param) as one:
        yield one


def test_keywords_and_fields_are_the_same():
    assert set(GenerationKeywords.__annotations__) == {f.name for f in fields(edgemm.Generation)}


def test_one_object_keywords_or_both(answers):
    image, how = picture(40, 50), edgemm.Generation(max_new_tokens=STEPS, beams=3)
    found = answers.answer(image, "What?", generation=how)
    assert answers.answer(image, "What?", max_new_tokens=STEPS, beams=3).tokens == found.tokens
    assert answers.answer(image, "What?", generation=how, max_new_tokens=4, beams=None).tokens == (
        answers.answer(image, "What?", max_new_tokens=4).tokens
    )
    assert answers.caption(image, generation=how).tokens == answers.caption(image, max_new_tokens=STEPS, beams=3).tokens


def test_an_unknown_keyword_is_refused(answers):
    with pytest.raises(InputError, match="no generation option 'max_tokens'") as caught:
        answers.answer(picture(9, 9), "What?", max_tokens=3)
    assert "max_new_tokens" in caught.value.hint


def test_drawing_is_seeded(answers):
    def say(**options):
        return answers.answer(picture(40, 50), "What?", max_new_tokens=STEPS, **options).tokens

    assert say(temperature=1.0, seed=1) == say(temperature=1.0, seed=1)
    assert say(temperature=1.0, seed=1) != say(temperature=1.0, seed=2)
    assert say(seed=5) == say() == say(temperature=0.0, top_k=40, seed=5) == say(temperature=2.0, top_k=1)


def test_a_stop_is_left_out_and_never_shown(answers):
    image = picture(40, 50)
    whole = answers.answer(image, "What?", max_new_tokens=STEPS)
    start = len(whole.text) // 2
    stop = whole.text[start : start + 3]
    pieces = []
    found = answers.answer(image, "What?", max_new_tokens=STEPS, stop=["never said", stop], on_text=pieces.append)
    assert found.text == whole.text[: whole.text.index(stop)].strip()
    assert "".join(pieces).strip() == found.text
    assert found.tokens == whole.tokens[: len(found.tokens)]
    assert len(found.tokens) < len(whole.tokens)


def test_beams_stop_too(answers):
    image = picture(40, 50)
    whole = answers.answer(image, "What?", max_new_tokens=STEPS, beams=3).text
    stop = whole[len(whole) // 2]
    assert stop not in answers.answer(image, "What?", max_new_tokens=STEPS, beams=3, stop=stop).text


def test_an_answer_by_schema(answers):
    found = answers.answer(picture(40, 50), "What?", schema=SCHEMA, max_new_tokens=100, temperature=1.0, seed=4)
    validate(json.loads(found.text), SCHEMA)


def test_a_schema_without_its_extra(answers, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RuntimeUnavailable, match=r'pip install "edgemm\[guided\]"'):
        answers.answer(picture(9, 9), "What?", schema=SCHEMA)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": -1}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"beams": 0},
        {"beams": 2, "temperature": 1}, {"beams": 2, "schema": {}}, {"stop": ""}, {"repetition_penalty": 0},
        {"min_new_tokens": 9, "max_new_tokens": 3}, {"seed": -1}, {"no_repeat_ngram": -2},
    ],
    ids=str,
)  # fmt: skip
def test_contradictions_are_refused_before_anything_runs(wrong):
    with pytest.raises(InputError):
        chosen(None, wrong)


def test_speech_takes_what_makes_sense():
    samples = sound(1.0)
    with model("moonshine", "onnxruntime") as one:
        assert len(one.transcribe(samples, max_new_tokens=2).tokens) <= 2
        assert one.transcribe(samples, beams=2).tokens
        for wrong in ({"temperature": 0.5}, {"stop": "x"}, {"schema": {}}):
            with pytest.raises(InputError, match="a transcript takes no"):
                one.transcribe(samples, **wrong)


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["ab", "cd"], (), ["ab", "cd"]),
        (["ab", "c", "d"], ("cd",), ["ab"]),
        (["ab", "c", "x"], ("cd",), ["ab", "cx"]),
        (["a", "a", "b"], ("aab",), []),
        (["a", "a", "a", "b", "z"], ("aab",), ["a"]),
        (["hello", " wor"], ("world",), ["hello", " ", "wor"]),
        (["x\n", "\ny"], ("\n\n", "y"), ["x"]),
    ],
)
def test_what_may_be_a_stop_is_held_back(pieces, stops, shown):
    told = []
    show = Shown(told.append, stops)
    for piece in pieces:
        show.push(piece)
    show.push("", final=True)
    assert told == shown
    assert "".join(told) == before_stop("".join(pieces), stops)

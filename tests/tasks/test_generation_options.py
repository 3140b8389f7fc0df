"""Beams, penalties, limits and schemas over a real decoder, against transformers' `generate`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from jsonschema import validate
from transformers import SmolVLMForConditionalGeneration

from edgemm.decoding.generate import GenerationOptions, generate
from edgemm.decoding.guided import json_rule, regex_rule
from edgemm.errors import InputError
from edgemm.tasks.prompts import make_prompt
from edgemm.tasks.prompts.base import user
from tests.export.exported import RUNTIMES, checkpoint, model, picture

STEPS = 32
SETTINGS = {
    "beams": ({"num_beams": 3}, {"beams": 3}),
    "beams_short": ({"num_beams": 4, "length_penalty": -1.0}, {"beams": 4, "length_penalty": -1.0}),
    "beams_early": ({"num_beams": 3, "early_stopping": True}, {"beams": 3, "early_stopping": True}),
    "beams_long": (
        {"num_beams": 3, "length_penalty": 2.0, "no_repeat_ngram_size": 2},
        {"beams": 3, "length_penalty": 2.0, "no_repeat_ngram": 2},
    ),
    "penalty": ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
    "ngram": ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram": 3}),
    "least": ({"min_new_tokens": 20}, {"min_new_tokens": 20}),
}
SCHEMA = {
    "type": "object",
    "properties": {"door": {"enum": ["open", "closed"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["door", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def original():
    return SmolVLMForConditionalGeneration.from_pretrained(checkpoint("smolvlm"), dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=RUNTIMES)
def answerer(request):
    with model("smolvlm", request.param) as one:
        yield one.task("answer")


def _asked(seed):
    return [user(("What is it?", "Where?", "turn left — größe")[seed % 3], [picture(40 + 9 * seed, 70, seed=seed)])]


def _options(answerer, messages, **settings):
    prompt = make_prompt(messages, answerer.context)
    return GenerationOptions(STEPS, answerer.context.tokens.eos, prompt=tuple(prompt.ids), **settings)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_equal_generate_with_options(original, answerer, name, seed):
    theirs, ours = SETTINGS[name]
    messages = _asked(seed)
    prompt = make_prompt(messages, answerer.context)
    ids = torch.tensor([prompt.ids])
    pixels = torch.from_numpy(prompt.media[0].feeds["pixel_values"])[None]
    with torch.no_grad():
        said = original.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            max_new_tokens=STEPS,
            do_sample=False,
            **theirs,
        )[0, ids.shape[1] :].tolist()
    ends = [i for i, token in enumerate(said) if token in answerer.context.tokens.eos]
    out = generate(*answerer.prefill(messages), _options(answerer, messages, **ours))
    assert out.tokens == said[: ends[0] if ends else None]
    assert len(out.log_probabilities) == len(out.tokens)


def test_the_same_seed_says_the_same(answerer):
    def say(seed, **more):
        options = _options(answerer, _asked(0), temperature=1.0, seed=seed, **more)
        return generate(*answerer.prefill(_asked(0)), options).tokens

    assert say(1) == say(1)
    assert say(1) != say(2)
    assert say(3, top_k=1) == generate(*answerer.prefill(_asked(0)), _options(answerer, _asked(0))).tokens


def test_a_stop_ends_the_answer(answerer):
    greedy = generate(*answerer.prefill(_asked(1)), _options(answerer, _asked(1))).tokens
    stop = greedy[5]
    out = generate(*answerer.prefill(_asked(1)), _options(answerer, _asked(1), stop=lambda ids: ids[-1] == stop))
    assert out.tokens == greedy[: greedy.index(stop) + 1]
    assert out.finished


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_by_schema_is_valid_json(answerer, seed):
    tokens, words = answerer.context.tokens, answerer.tokenizer
    rule = json_rule(SCHEMA, checkpoint("smolvlm") / "tokenizer.json", tokens.vocab_size, tokens.eos[0])
    options = GenerationOptions(128, tokens.eos, temperature=1.0, seed=seed, rules=(rule,))
    out = generate(*answerer.prefill(_asked(0)), options)
    assert out.finished
    validate(json.loads(words.decode(out.tokens)), SCHEMA)


def test_an_answer_by_pattern(answerer):
    tokens = answerer.context.tokens
    rule = regex_rule("(yes|no), [0-9]{2} robots", checkpoint("smolvlm") / "tokenizer.json", tokens.vocab_size, 0)
    options = GenerationOptions(40, (*tokens.eos, 0), rules=(rule,))
    text = answerer.tokenizer.decode(generate(*answerer.prefill(_asked(0)), options).tokens)
    assert text[:3] in ("yes", "no,")
    assert text.endswith(" robots")


def test_a_schema_that_cannot_be_followed(answerer):
    tokens = answerer.context.tokens
    with pytest.raises(InputError, match="schema"):
        json_rule({"type": "no such type"}, checkpoint("smolvlm") / "tokenizer.json", tokens.vocab_size, tokens.eos[0])


@pytest.mark.parametrize(
    "wrong",
    [{"max_new_tokens": -1}, {"temperature": -1}, {"top_p": 0}, {"beams": 0}, {"beams": 2, "temperature": 1}],
    ids=str,
)
def test_contradictions_are_refused(wrong):
    with pytest.raises(InputError):
        GenerationOptions(**{"max_new_tokens": 8, "eos": (1,)} | wrong)


def test_beams_leave_the_decoder_usable(answerer):
    before = generate(*answerer.prefill(_asked(2)), _options(answerer, _asked(2))).tokens
    generate(*answerer.prefill(_asked(2)), _options(answerer, _asked(2), beams=3))
    assert generate(*answerer.prefill(_asked(2)), _options(answerer, _asked(2))).tokens == before
    assert np.isfinite(answerer.prefill(_asked(2))[1]).all()

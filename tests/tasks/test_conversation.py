"""Several turns: what was read stays read, and the tokens are those of the whole conversation."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForImageTextToText

from edgemm.decoding.options import Generation
from edgemm.errors import ContextFull, InputError, TaskUnavailable
from edgemm.tasks.prompts import make_prompt
from edgemm.tasks.prompts.base import Context, user
from tests.export.exported import RUNTIMES, checkpoint, model, picture

STEPS = 12
FAMILIES = ("smolvlm", "gemma3", "qwen2_vl", "llava_onevision")


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


@pytest.fixture(scope="module")
def originals():
    made = {}

    def original(name):
        if name not in made:
            loaded = AutoModelForImageTextToText.from_pretrained(checkpoint(name), dtype=torch.float32)
            made[name] = loaded.eval()
        return made[name]

    return original


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request):
    return request.param


@pytest.fixture(scope="module")
def smolvlm(runtime):
    with model("smolvlm", runtime) as one:
        yield one


def generated(original, prompt, eos, **options):
    """transformers' `generate` over a whole rendered conversation."""
    ids = torch.tensor([prompt.ids])
    tiles = [torch.from_numpy(m.feeds["pixel_values"]) for m in prompt.media]
    pixels = {"pixel_values": torch.cat(tiles)[None]} if tiles else {}
    with torch.no_grad():
        said = original.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **pixels,
            max_new_tokens=STEPS,
            do_sample=False,
            **options,
        )[0, ids.shape[1] :].tolist()
    ends = [i for i, token in enumerate(said) if token in eos]
    return tuple(said[: ends[0]] if ends else said)


TURNS = [
    ("What is in the picture?", [picture(40, 70)]),
    ("Where?", []),
    ("And what is here — größe?", [picture(30, 33, seed=2)]),
    ("x", []),
]


def test_every_turn_equals_generate_over_the_whole_conversation(originals, smolvlm):
    context, messages = smolvlm.task("answer").context, []
    with smolvlm.chat() as talk:
        for text, images in TURNS:
            messages.append(user(text, images))
            prompt = make_prompt(messages, context)
            said = talk.say(text, images, max_new_tokens=STEPS)
            assert said.tokens == generated(originals("smolvlm"), prompt, context.tokens.eos)
            messages.append(assistant(said.text))
        assert [m["role"] for m in talk.messages] == ["user", "assistant"] * len(TURNS)


@pytest.mark.parametrize("name", FAMILIES)
def test_turns_equal_single_answers_of_the_same_messages(name, runtime):
    """Against the family's own path over the whole prompt, which other tests compare with transformers."""
    with model(name, runtime) as one, one.chat() as talk:
        answerer, messages = one.task("answer"), []
        for text, images in TURNS:
            messages.append(user(text, images))
            whole = answerer.chat(messages, generation=Generation(max_new_tokens=STEPS))
            said = talk.say(text, images, max_new_tokens=STEPS)
            assert said.tokens == whole.tokens
            messages.append(assistant(said.text))


# As most templates: an earlier answer stands as it was said, right behind what asked for it.
PLAIN = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}:{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


@contextmanager
def with_template(runtime, template):
    """The tiny SmolVLM with another chat template."""
    with model("smolvlm", runtime) as one:
        answerer = one.task("answer")
        before = answerer.context
        chat = before.chat.model_copy(update={"template": template})
        processing = before.processing.model_copy(update={"chat": chat})
        answerer.context = Context(processing, before.tokens, answerer.tokenizer)
        yield one


def said_as_written(one, talk, image):
    """A first turn whose answer, written down, reads as the tokens that it was said in."""
    context = one.task("answer").context
    for question in ("What is it?", "Where?", "a", "b", "c", "d"):
        for steps in (4, 3, 2):
            prompt = make_prompt([user(question, [image])], context)
            said = talk.say(question, image, max_new_tokens=steps)
            again = make_prompt([*talk.messages, user("y")], context).ids[len(prompt.ids) :]
            if len(said.tokens) > 1 and tuple(again[: len(said.tokens)]) == said.tokens:
                return prompt, said
            talk.drop()
    raise AssertionError("no answer reads as it was said")


@pytest.mark.parametrize("seed", range(3))
def test_only_new_tokens_are_read(runtime, seed):
    with with_template(runtime, PLAIN) as one, one.chat() as talk:
        first, said = said_as_written(one, talk, picture(40, 70, seed=seed))
        second = make_prompt([*talk.messages, user("And where?")], one.task("answer").context)
        decoder, calls = talk._decoder, []
        prefill, decoder.prefill = decoder.prefill, lambda x, **more: calls.append(x.shape[1]) or prefill(x, **more)
        session, runs = one._graphs["main"].session("vision_encoder"), []
        run, session.run = session.run, lambda *a, **more: runs.append(1) or run(*a, **more)
        again = talk.say("And where?", max_new_tokens=1).tokens
        # The last token of the first answer was said and not read: nothing came after it.
        read = len(first.ids) + len(said.tokens) - 1
        assert second.ids[:read] == [*first.ids, *said.tokens][:read]
        assert calls == [len(second.ids) - read] == [talk.prefilled]
        assert not runs, "the picture was encoded again"
        del decoder.prefill, session.run
        assert again == one.task("answer").chat(talk.messages[:-1], generation=Generation(max_new_tokens=1)).tokens


def test_a_template_that_renders_earlier_turns_differently(originals, runtime):
    """Some templates drop what an earlier answer held, or write the number of turns first."""
    template = (
        "<|im_start|>{% for turn in messages %}{% if loop.last or turn['role'] == 'user' %}"
        "{{ turn['role'] }}{{ loop.revindex }}:{% for part in turn['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{% else %}{{ 'Said ' + turn['content'][0]['text'] | length | string }}{% endif %}<end_of_utterance>\n"
        "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    with with_template(runtime, template) as one:
        context = one.task("answer").context
        messages = []
        with one.chat() as talk:
            for text, images in TURNS:
                messages.append(user(text, images))
                prompt = make_prompt(messages, context)
                said = talk.say(text, images, max_new_tokens=STEPS)
                assert said.tokens == generated(originals("smolvlm"), prompt, context.tokens.eos)
                messages.append(assistant(said.text))
                assert talk._decoder.length == len(talk._read)
            assert talk.prefilled > len(prompt.ids) / 2


def test_another_picture_in_the_same_place_is_read(smolvlm):
    """Equal ids are not equal positions where they stand for pictures."""
    with smolvlm.chat() as talk, smolvlm.chat() as other:
        talk.say("What?", [picture(40, 70, seed=1)], max_new_tokens=4)
        talk.drop()
        expected = other.say("What?", [picture(40, 70, seed=2)], max_new_tokens=STEPS)
        found = talk.say("What?", [picture(40, 70, seed=2)], max_new_tokens=STEPS)
        assert found.tokens == expected.tokens
        assert talk.prefilled > 64


def test_other_calls_and_other_conversations_come_between(smolvlm):
    def turns(between):
        with smolvlm.chat() as talk:
            first = talk.say(*TURNS[0], max_new_tokens=STEPS).tokens
            between()
            return first, talk.say("Where?", max_new_tokens=STEPS).tokens

    def disturb():
        smolvlm.answer(picture(30, 30, seed=7), "Other?", max_new_tokens=5)
        with smolvlm.chat() as other:
            other.say("Something else", max_new_tokens=5)

    assert turns(lambda: None) == turns(disturb)


def test_beams_leave_the_conversation_as_it_is(originals, smolvlm):
    context = smolvlm.task("answer").context
    with smolvlm.chat() as talk:
        messages = []
        for (text, images), beams in zip(TURNS, (3, 1, 2, 3), strict=True):
            messages.append(user(text, images))
            prompt = make_prompt(messages, context)
            said = talk.say(text, images, max_new_tokens=STEPS, beams=beams)
            assert said.tokens == generated(originals("smolvlm"), prompt, context.tokens.eos, num_beams=beams)
            messages.append(assistant(said.text))


def test_a_turn_that_fails_is_not_part_of_the_conversation(smolvlm):
    def interrupt(_):
        raise KeyError("enough")

    with smolvlm.chat() as talk, smolvlm.chat() as other:
        for one in (talk, other):
            one.say(*TURNS[0], max_new_tokens=STEPS)
        with pytest.raises(KeyError):
            talk.say("Stop?", max_new_tokens=STEPS, on_text=interrupt)
        with pytest.raises(InputError, match="empty"):
            talk.say("  ")
        assert [m["role"] for m in talk.messages] == ["user", "assistant"]
        assert talk.say("Where?", max_new_tokens=STEPS).tokens == other.say("Where?", max_new_tokens=STEPS).tokens


def test_a_full_conversation_says_what_to_do(smolvlm):
    image = picture(64, 96)
    with smolvlm.chat() as talk:
        for _ in range(3):
            talk.say("What?", image, max_new_tokens=4)
        with pytest.raises(ContextFull, match="the model takes 512") as caught:
            talk.say("What is it now?", [image] * 3, max_new_tokens=4)
        assert "drop()" in caught.value.hint
        turns = len(talk.messages) // 2
        talk.drop(turns - 1)
        said = talk.say("What is it now?", image, max_new_tokens=STEPS)
        whole = smolvlm.task("answer").chat(talk.messages[:-1], generation=Generation(max_new_tokens=STEPS))
        assert said.tokens == whole.tokens
        with pytest.raises(InputError, match="cannot be dropped"):
            talk.drop(99)


def test_text_streams_and_stops(smolvlm):
    pieces = []
    with smolvlm.chat() as talk:
        said = talk.say(*TURNS[0], max_new_tokens=STEPS, on_text=pieces.append)
    assert "".join(pieces).strip() == said.text
    middle = said.text[len(said.text) // 2 :][:2]
    with smolvlm.chat() as talk:
        cut = talk.say(*TURNS[0], max_new_tokens=STEPS, stop=middle)
        assert cut.text == said.text[: said.text.find(middle)].strip()
        assert len(cut.tokens) < len(said.tokens)


def test_a_system_message_comes_first(smolvlm):
    with smolvlm.chat(system="Be brief.") as talk:
        said = talk.say("What?", max_new_tokens=STEPS)
        system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
        assert talk.messages[0] == system
    whole = smolvlm.task("answer").chat([system, user("What?")], generation=Generation(max_new_tokens=STEPS))
    assert said.tokens == whole.tokens


def test_a_closed_conversation(smolvlm):
    talk = smolvlm.chat()
    talk.close()
    with pytest.raises(InputError, match="closed"):
        talk.say("What?")


def test_models_without_conversations(runtime):
    with model("blip_vqa", runtime) as one, pytest.raises(TaskUnavailable, match="no conversation"):
        one.chat()
    with model("paligemma", runtime) as one, one.chat() as talk:
        talk.say("What?", picture(32, 32), max_new_tokens=2)
        with pytest.raises(InputError, match="one question"):
            talk.say("Where?", max_new_tokens=2)

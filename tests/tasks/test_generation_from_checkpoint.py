"""A checkpoint's own generation_config.json decides what nobody asked for, as in transformers' `generate`."""

from __future__ import annotations

import json
import shutil
from functools import cache

import pytest
import torch
from PIL import Image
from transformers import (
    SmolVLMForConditionalGeneration,
    ViTImageProcessorPil,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from edgemm.bundle.opening import open_bundle
from edgemm.bundle.spec import GenerationSpec, SamplingSpec
from edgemm.decoding.options import Generation
from edgemm.errors import CheckpointError, ContextFull
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.families.vision_encoder_decoder import load as load_reader
from edgemm.export.pipeline import export
from edgemm.model import Model
from edgemm.tasks.prompts import make_prompt
from edgemm.tasks.prompts.base import user
from tests.export.exported import EXACT, RATE_HZ, RUNTIMES, checkpoint, picture, place, rewrite, sound

BEAMS = {
    "num_beams": 3,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 3,
    "length_penalty": 0.5,
    "max_new_tokens": 20,
    "min_new_tokens": 6,
}
# As Qwen2.5-VL's: sampling with a low temperature, and a penalty that greedy decoding obeys too.
SAMPLING = {"do_sample": True, "temperature": 0.3, "top_k": 5, "repetition_penalty": 1.2, "max_new_tokens": 16}
# Export asks for 24 tokens, with some examples fewer than `min_length` wants: transformers remarks on it.
pytestmark = pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
TOTAL = {"max_length": 150, "min_length": 131, "num_beams": 2, "early_stopping": "never", "length_penalty": 2.0}
CHATS = {"beams": BEAMS, "sampling": SAMPLING, "total": TOTAL}
READS = {"num_beams": 4, "max_length": 16, "early_stopping": True, "no_repeat_ngram_size": 2}
HEARS = {"num_beams": 3, "repetition_penalty": 1.2}


@cache
def with_settings(name, settings):
    """A copy of a tiny checkpoint whose generation_config.json says `settings` too."""
    values = json.loads(settings)
    path = place() / f"{name}-{abs(hash(settings))}"
    shutil.copytree(checkpoint(name), path)
    rewrite(path / "generation_config.json", **values)
    return path


@cache
def bundle(name, settings):
    path = with_settings(name, settings)
    return export(path, path.with_name(f"{path.name}-bundle"))


def opened(name, settings, runtime):
    return Model(open_bundle(bundle(name, json.dumps(settings)).bundle), runtime=runtime, options=EXACT)


@cache
def chat_original(settings):
    path = with_settings("smolvlm", settings)
    return SmolVLMForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()


def said_by_chat(settings, context, image, question):
    prompt = make_prompt([user(question, [image])], context)
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        said = chat_original(json.dumps(settings)).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.from_numpy(prompt.media[0].feeds["pixel_values"])[None],
            do_sample=False,
        )
    return until(said[0, ids.shape[1] :].tolist(), context.tokens.eos)


def until(ids, eos):
    ends = [i for i, token in enumerate(ids) if token in eos]
    return tuple(ids[: ends[0]] if ends else ids)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", CHATS)
def test_answers_follow_the_checkpoint(name, runtime):
    with opened("smolvlm", CHATS[name], runtime) as one:
        for seed in range(3):
            image, question = picture(30, 30 + seed, seed=seed), ("What is it?", "Where?", "größe")[seed]
            expected = said_by_chat(CHATS[name], one.task("answer").context, image, question)
            assert one.answer(image, question).tokens == expected
            assert len(expected) > 4


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_captions_follow_the_checkpoint(runtime):
    original = load_reader(find_checkpoint(with_settings("vit_gpt2", json.dumps(READS))))
    processor = ViTImageProcessorPil.from_pretrained(checkpoint("vit_gpt2"))
    with opened("vit_gpt2", READS, runtime) as one:
        for seed in range(3):
            image = picture(40, 60, seed=seed)
            values = processor(Image.fromarray(image), return_tensors="pt").pixel_values
            with torch.no_grad():
                expected = original.generate(pixel_values=values)[0, 1:].tolist()
            assert one.caption(image).tokens == until(expected, one.task("caption").writer.tokens.eos)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_transcripts_follow_the_checkpoint_and_the_caller(runtime):
    path = with_settings("whisper_en", json.dumps(HEARS))
    original = WhisperForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(path)
    tokens = find_checkpoint(path).json("generation_config.json")

    def expected(samples, **more):
        features = extractor(samples, sampling_rate=RATE_HZ, return_tensors="pt").input_features
        with torch.no_grad():
            ids = original.generate(input_features=features, do_sample=False, **more)[0].tolist()
        if ids[:1] == [tokens["decoder_start_token_id"]]:
            ids = ids[ids.index(tokens["no_timestamps_token_id"]) + 1 :]
        return until(ids, [tokens["eos_token_id"]])

    with opened("whisper_en", HEARS, runtime) as one:
        for seed in range(2):
            samples = sound(1.5, seed=seed)
            assert one.transcribe(samples).tokens == expected(samples)
            assert one.transcribe(samples, beams=1, no_repeat_ngram=2).tokens == expected(
                samples, num_beams=1, no_repeat_ngram_size=2
            )
            assert len(one.transcribe(samples, max_new_tokens=3).tokens) <= 3


def test_the_manifest_holds_what_the_file_says():
    spec = bundle("smolvlm", json.dumps(SAMPLING)).manifest.models[0].generation
    assert spec.sampling == SamplingSpec(temperature=0.3, top_k=5)
    assert (spec.max_new_tokens, spec.repetition_penalty, spec.num_beams) == (16, 1.2, 1)
    spec = bundle("smolvlm", json.dumps(TOTAL)).manifest.models[0].generation
    assert (spec.max_length, spec.min_length, spec.early_stopping) == (150, 131, "never")


def test_the_caller_goes_before_the_checkpoint():
    image = picture(30, 30)
    with opened("smolvlm", BEAMS, "onnxruntime") as one, opened("smolvlm", SAMPLING, "onnxruntime") as other:
        free = {"repetition_penalty": 1.0, "no_repeat_ngram": 0, "min_new_tokens": 0, "max_new_tokens": 20}
        greedy = other.answer(image, "What?", **free).tokens
        assert one.answer(image, "What?", beams=1, **free).tokens == greedy
        assert one.answer(image, "What?").tokens != greedy
        # Beams that only the checkpoint wants give way to drawing.
        assert one.answer(image, "What?", top_k=1, **free).tokens == greedy
        # Fewer tokens than the checkpoint's least.
        assert len(one.answer(image, "What?", max_new_tokens=2).tokens) == 2


def test_what_drawing_leaves_open_is_the_checkpoints():
    with opened("smolvlm", SAMPLING, "onnxruntime") as one:
        writer = one.task("answer").writer

        def numbers(**asked):
            options = writer.options(Generation(**asked), [1])
            return options.temperature, options.top_k, options.top_p

        assert numbers()[0] == 0
        assert numbers(temperature=0.0, top_k=3)[0] == 0
        assert numbers(top_p=0.5) == (0.3, 5, 0.5)
        assert numbers(temperature=0.9, top_k=0) == (0.9, 0, 1.0)


def test_a_prompt_longer_than_the_checkpoints_length():
    with opened("smolvlm", TOTAL, "onnxruntime") as one:
        with pytest.raises(ContextFull, match="150 in all"):
            one.answer([picture(30, 30)] * 4, "What?")
        assert one.answer([picture(30, 30)] * 4, "What?", max_new_tokens=2, min_new_tokens=0).tokens


def test_values_that_no_manifest_holds(tmp_path):
    path = shutil.copytree(checkpoint("smolvlm"), tmp_path / "many")
    rewrite(path / "generation_config.json", num_beams=1000)
    with pytest.raises(CheckpointError, match=r"generation_config\.json: num_beams is 1000"):
        export(path, tmp_path / "b")


def test_a_manifest_of_before_still_opens():
    spec = GenerationSpec.model_validate({"max_new_tokens": 256, "no_repeat_ngram_size": 2})
    assert (spec.num_beams, spec.max_length, spec.sampling) == (1, None, None)

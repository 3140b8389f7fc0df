"""Moonshine: raw 16 kHz sound → English text (Jeffries et al., arXiv 2410.15608)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import MoonshineForConditionalGeneration

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import RawAudioSpec, TokensSpec
from edgemm.export.chat_vlm import language_shape
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.generation import generation_spec
from edgemm.export.graph import Port
from edgemm.export.loading import load_pair, token_ids
from edgemm.export.model_plan import Example, ModelPlan, Original, Reference
from edgemm.export.plans import decoder_plan, embed_plan
from edgemm.export.speech import audio_encoder_plan
from edgemm.export.text import tokenizer_files
from edgemm.export.tracing import use_plain_attention
from edgemm.export.wrappers import EncoderDecoderDecoder

MODEL_TYPE = "moonshine"
TASKS = ("transcribe",)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "audio encoder": ("model.encoder.layers.", "model.encoder.conv1."),
    "decoder": ("model.decoder.layers.",),
}

_RATE_HZ = 16_000
_MAX_S = 30.0  # the longest utterances of its training data
TOKENS_PER_S = 6.5  # the published bound against endless repetition
_STRIDE_SAMPLES = 64 * 3 * 2


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: audio_encoder, decoder, embed_tokens."""
    original, traced = load_pair(MoonshineForConditionalGeneration, checkpoint)
    use_plain_attention(traced)
    return plan_of(checkpoint, original, traced)


def plan_of(checkpoint: Checkpoint, original: Any, traced: Any) -> ModelPlan:
    """The plan of an untouched model and the one of the same weights that is traced; `checkpoint` has the tokenizer."""
    config = traced.config
    encoder, decoder = traced.model.encoder, traced.model.decoder
    shape = replace(
        language_shape(config),
        cross_heads=config.num_key_value_heads,
        cross_max=int(_MAX_S * _RATE_HZ) // _STRIDE_SAMPLES,
    )
    sound = Port("input_values", torch.float32, ("batch", "samples"))
    sizes = tuple({"batch": b, "samples": n} for b, n in ((2, 4800), (1, 895), (1, 16_001), (3, 2000)))
    text, files = tokenizer_files(checkpoint)
    tokens = token_ids(original)
    spec = RawAudioSpec(sample_rate_hz=_RATE_HZ, min_s=0.1, max_s=_MAX_S)

    def feeds(example: Example) -> dict[str, dict[str, NDArray[Any]]]:
        from edgemm.processing.features import raw

        if example.audio is None:
            return {}
        return {"audio_encoder": {"input_values": raw(example.audio, spec).values}}

    def reference(example: Example) -> Reference:
        values = torch.from_numpy(feeds(example)["audio_encoder"]["input_values"])
        limit = min(int(values.shape[1] / _RATE_HZ * TOKENS_PER_S) + 1, shape.context - 1)
        with torch.no_grad():
            ids = original.generate(input_values=values, max_new_tokens=limit, do_sample=False)[0]
        return Reference(tokens=_spoken(ids.tolist(), tokens))

    projections = [(x.encoder_attn.k_proj, x.encoder_attn.v_proj) for x in decoder.layers]
    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=(
            # One step for all activations gives other words: with it two runtimes differed in 2.3 % of words, with
            # int8 weights alone in none (docs/PERFORMANCE.md). A runtime may round them row by row.
            audio_encoder_plan(
                encoder,
                projections,
                shape,
                sound,
                {"samples": (1600, 160_000, 480_000)},
                sizes,
                treatment="weight_only",
            ),
            decoder_plan(EncoderDecoderDecoder(decoder, traced.proj_out, shape.layers), shape),
            embed_plan(decoder.embed_tokens),
        ),
        processing=Processing(audio=spec, text=text),
        tokens=tokens,
        generation=generation_spec(
            traced.generation_config,
            max_new_tokens=shape.context - 1,
            max_length=None,
            max_positions=shape.context,
            max_tokens_per_s=TOKENS_PER_S,
        ),
        context=shape.context,
        files=files,
        feeds=feeds,
        reference=reference,
        original=Original(original),
        takes="audio",
    )


def _spoken(ids: list[int], tokens: TokensSpec) -> tuple[int, ...]:
    special = {tokens.bos, tokens.decoder_start, *tokens.eos}
    return tuple(i for i in ids if i not in special)

"""Whisper: log-mel spectrogram → text in many languages (Radford et al., arXiv 2212.04356)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import WhisperForConditionalGeneration

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import GenerationSpec, TimestampSpec, TokensSpec
from edgemm.errors import CheckpointError
from edgemm.export import generation
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import GraphPlan, Port
from edgemm.export.loading import load_pair, token_ids
from edgemm.export.model_plan import Example, ModelPlan, Original, Reference
from edgemm.export.plans import DecoderExtras, DecoderShape, decoder_plan, embed_plan
from edgemm.export.speech import audio_encoder_plan, log_mel_spec
from edgemm.export.text import tokenizer_files
from edgemm.export.tracing import Heads, use_plain_attention
from edgemm.export.wrappers import EncoderDecoderDecoder

MODEL_TYPE = "whisper"
TASKS = ("transcribe",)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "audio encoder": ("model.encoder.layers.", "model.encoder.conv1."),
    "decoder": ("model.decoder.layers.",),
}

_TIME_STEP_S = 0.02


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: audio_encoder, decoder, embed_tokens."""
    original, traced = load_pair(WhisperForConditionalGeneration, checkpoint)
    use_plain_attention(traced)
    config = traced.config
    shape = DecoderShape(
        layers=config.decoder_layers,
        hidden=config.d_model,
        kv_heads=config.decoder_attention_heads,
        head_dim=config.d_model // config.decoder_attention_heads,
        vocabulary=config.vocab_size,
        context=config.max_target_positions,
        cross_heads=config.decoder_attention_heads,
        cross_max=config.max_source_positions,
    )
    heads = alignment_heads(traced.generation_config, shape)
    spec = log_mel_spec(checkpoint, config)
    frames = 2 * config.max_source_positions
    tokens = token_ids(traced)
    sound = Port("input_features", torch.float32, ("batch", config.num_mel_bins, frames))
    text, files = tokenizer_files(checkpoint)

    def feeds(example: Example) -> dict[str, dict[str, NDArray[Any]]]:
        from edgemm.processing.features import log_mel

        if example.audio is None:
            return {}
        return {"audio_encoder": {"input_features": log_mel(example.audio, spec).values}}

    def reference(example: Example) -> Reference:
        values = torch.from_numpy(feeds(example)["audio_encoder"]["input_features"])
        settings = original.generation_config
        # Without a task transformers leaves the task token out where it detects the language.
        task = {"task": "transcribe"} if getattr(settings, "is_multilingual", False) else {}
        with torch.no_grad():
            ids = original.generate(input_features=values, do_sample=False, **task)[0]
        return Reference(tokens=_said(ids.tolist(), tokens, settings.no_timestamps_token_id))

    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=_graphs(traced, shape, sound, heads),
        processing=Processing(audio=spec, text=text),
        tokens=tokens,
        generation=generation_spec(traced.generation_config, config, heads),
        context=shape.context,
        files=files,
        feeds=feeds,
        reference=reference,
        original=Original(original),
        takes="audio",
    )


def _graphs(traced: Any, shape: DecoderShape, sound: Port, heads: Heads) -> tuple[GraphPlan, ...]:
    decoder = traced.model.decoder
    projections = [(x.encoder_attn.k_proj, x.encoder_attn.v_proj) for x in decoder.layers]
    wrapped = EncoderDecoderDecoder(decoder, traced.proj_out, shape.layers, heads)
    return (
        audio_encoder_plan(traced.model.encoder, projections, shape, sound, {}, ({"batch": 2}, {"batch": 1})),
        decoder_plan(wrapped, shape, DecoderExtras(alignment=len(heads))),
        embed_plan(decoder.embed_tokens),
    )


def _said(ids: list[int], tokens: TokensSpec, no_timestamps: int) -> tuple[int, ...]:
    """`ids` between the prompt, which some versions of transformers return, and the end."""
    if ids[:1] == [tokens.decoder_start]:
        ids = ids[ids.index(no_timestamps) + 1 :]
    ends = [i for i, token in enumerate(ids) if token in tokens.eos]
    return tuple(ids[: ends[0]] if ends else ids)


def alignment_heads(config: Any, shape: DecoderShape) -> Heads:
    """The (layer, head) pairs that listen to where a word is, of a generation configuration; () where it names none.

    Raises CheckpointError for pairs that the decoder does not have.
    """
    named = getattr(config, "alignment_heads", None) or ()
    try:
        heads = tuple((int(layer), int(head)) for layer, head in named)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"generation_config.json: alignment_heads is {named!r}, expected pairs of layer and head",
            hint="mend the file, or leave alignment_heads out: the bundle then has no times of words",
        ) from error
    wrong = [(a, b) for a, b in heads if not (0 <= a < shape.layers and 0 <= b < shape.cross_heads)]
    if wrong:
        raise CheckpointError(
            f"generation_config.json: alignment_heads names {wrong[0]}, "
            f"the decoder has {shape.layers} layers of {shape.cross_heads} heads",
            hint="mend the file, or leave alignment_heads out: the bundle then has no times of words",
        )
    return heads


def generation_spec(config: Any, model: Any, heads: Heads) -> GenerationSpec:
    """Whisper's generation configuration: suppressed ids, languages, tasks, time tokens, and how words are timed.

    `model` is the configuration of the model itself.
    """
    context = model.max_target_positions
    no_timestamps = getattr(config, "no_timestamps_token_id", None)
    multilingual = bool(getattr(config, "is_multilingual", False))
    languages = getattr(config, "lang_to_id", None) or {}
    stamps = None
    if no_timestamps is not None:
        stamps = TimestampSpec(
            begin=no_timestamps + 1,
            precision_s=_TIME_STEP_S,
            no_timestamps=no_timestamps,
            max_initial=getattr(config, "max_initial_timestamp_index", None),
        )
    return generation.generation_spec(
        config,
        # What a window holds is the decoder's own limit, whatever the file says.
        max_new_tokens=context,
        max_length=None,
        max_positions=context,
        suppress_tokens=tuple(t for t in config.suppress_tokens or () if t >= 0),
        begin_suppress_tokens=tuple(config.begin_suppress_tokens or ()),
        languages={k.strip("<|>"): v for k, v in languages.items()} if multilingual else {},
        tasks=(getattr(config, "task_to_id", None) or {}) if multilingual else {},
        default_task="transcribe" if multilingual else None,
        timestamps=stamps,
        start_of_previous=getattr(config, "prev_sot_token_id", None),
        alignment_heads=heads,
        median_filter_width=model.median_filter_width,
    )

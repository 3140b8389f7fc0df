"""Qwen2-Audio: sounds and words → an answer (Chu et al., arXiv 2407.10759)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import Qwen2AudioForConditionalGeneration

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import LogMelSpec
from edgemm.export.chat_vlm import chat_original, language_shape
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.generation import generation_spec
from edgemm.export.graph import Feeds, GraphPlan, Port, Sizes
from edgemm.export.loading import load_pair, token_ids
from edgemm.export.model_plan import Example, ModelPlan
from edgemm.export.plans import BATCH, decoder_plan, embed_plan
from edgemm.export.speech import log_mel_spec
from edgemm.export.text import chat_spec, tokenizer_files
from edgemm.export.tracing import padding_bias, use_plain_attention
from edgemm.export.wrappers import CausalDecoder
from edgemm.processing.features import log_mel
from edgemm.processing.text import Tokenizer
from edgemm.tasks.prompts.base import Context
from edgemm.tasks.prompts.qwen_audio import encoder_feeds

MODEL_TYPE = "qwen2_audio"
TASKS = ("answer",)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "audio encoder": ("audio_tower.layers.|model.audio_tower.layers.", "multi_modal_projector.|model.multi_modal_"),
    "language model": ("language_model.model.layers.|model.language_model.layers.",),
}


class SoundEncoder(nn.Module):
    """input_features [B, mel, 2 T], attention_mask [B, T] → audio_features [B, T / 2, hidden].

    Positions past the mask's ones are not attended to; what comes out at them means nothing.
    """

    def __init__(self, tower: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.tower, self.projector = tower, projector

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """See the class."""
        values = feeds["input_features"]
        bias = padding_bias(feeds["attention_mask"], values.dtype)
        return (self.projector(self.tower(values, attention_mask=bias).last_hidden_state),)


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: audio_encoder (tower and projector), decoder, embed_tokens."""
    original, traced = load_pair(Qwen2AudioForConditionalGeneration, checkpoint)
    use_plain_attention(traced)
    config, model = traced.config, traced.model
    shape = language_shape(config.text_config)
    spec = log_mel_spec(checkpoint, config.audio_config)
    text, files = tokenizer_files(checkpoint)
    tokens = token_ids(traced, audio=config.audio_token_id)
    processing = Processing(audio=spec, text=text, chat=chat_spec(checkpoint), functions={"prompt": "qwen_audio"})
    context = Context(processing, tokens, Tokenizer(checkpoint.path / "tokenizer.json", text))
    language = model.language_model

    def feeds(example: Example) -> dict[str, dict[str, NDArray[Any]]]:
        if example.audio is None:
            return {}
        return {"audio_encoder": dict(encoder_feeds(log_mel(example.audio, spec)))}

    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=(
            _encoder_plan(SoundEncoder(model.audio_tower, model.multi_modal_projector), config, shape.hidden),
            decoder_plan(CausalDecoder(language, traced.lm_head, shape.layers), shape),
            embed_plan(language.embed_tokens),
        ),
        processing=processing,
        tokens=tokens,
        generation=generation_spec(traced.generation_config),
        context=shape.context,
        files=files,
        feeds=feeds,
        **chat_original(original, context, lambda _, example: _originals_inputs(example, spec)),
        takes="audio",
    )


def _encoder_plan(module: nn.Module, config: Any, hidden: int) -> GraphPlan:
    audio = config.audio_config
    length = audio.max_source_positions

    def make(sizes: Sizes, rng: torch.Generator) -> Feeds:
        heard = torch.randint(2, length + 1, (sizes["batch"], 1), generator=rng)
        return {"attention_mask": (torch.arange(length)[None] < heard).long()}

    return GraphPlan(
        role="audio_encoder",
        module=module,
        inputs=(
            Port("input_features", torch.float32, ("batch", audio.num_mel_bins, 2 * length)),
            Port("attention_mask", torch.int64, ("batch", length)),
        ),
        outputs=(Port("audio_features", torch.float32, ("batch", length // 2, hidden)),),
        ranges={"batch": BATCH},
        trace={"batch": 2},
        checks=({"batch": 1}, {"batch": 3}),
        make=make,
        half_ops=("Conv",),
    )


def _originals_inputs(example: Example, spec: LogMelSpec) -> dict[str, Any]:
    if example.audio is None:
        return {}
    heard = log_mel(example.audio, spec)
    return {
        "input_features": torch.from_numpy(heard.values),
        "feature_attention_mask": torch.from_numpy(heard.attention_mask).reshape(1, -1),
    }

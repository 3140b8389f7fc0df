"""PaliGemma and PaliGemma 2: pictures and a prompt → words (Beyer et al., arXiv 2407.07726 and 2412.03555)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PaliGemmaForConditionalGeneration

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import MaskSpec
from edgemm.export.chat_vlm import chat_original, image_settings, language_shape
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.generation import generation_spec
from edgemm.export.image_spec import image_spec
from edgemm.export.loading import load_pair, token_ids
from edgemm.export.model_plan import Example, ModelPlan
from edgemm.export.picture_vlm import BiasedDecoder, PictureEncoder, head_of, picture_feeds, picture_plan, pixels_of
from edgemm.export.plans import DecoderExtras, decoder_plan, embed_plan
from edgemm.export.text import tokenizer_files
from edgemm.export.tracing import use_plain_attention
from edgemm.processing.text import Tokenizer
from edgemm.tasks.masks import FULL, SLIDING
from edgemm.tasks.prompts.base import Context, Prompt

MODEL_TYPE = "paligemma"
TASKS = ("answer", "caption")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("vision_tower.|model.vision_tower.",),
    "projector": ("multi_modal_projector.|model.multi_modal_projector.",),
    "language model": ("language_model.|model.language_model.",),
}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: vision_encoder (tower and projector), decoder with its mask or two (Gemma 2), embed_tokens."""
    original, traced = load_pair(PaliGemmaForConditionalGeneration, checkpoint)
    use_plain_attention(traced)
    config, parts, language = traced.config, traced.model, traced.config.text_config
    shape, vision = language_shape(language), config.vision_config
    window = getattr(language, "sliding_window", None)
    per_picture = (vision.image_size // vision.patch_size) ** 2
    image = image_spec(image_settings(checkpoint), vision.image_size).model_copy(update={"image_seq_len": per_picture})
    text, files = tokenizer_files(checkpoint)
    mask = MaskSpec(kind="prefix", window=window, blocks_in_window=False)
    processing = Processing(image=image, text=text, mask=mask, functions={"prompt": "paligemma"})
    tokens = token_ids(traced, image=config.image_token_id)
    context = Context(processing, tokens, Tokenizer(checkpoint.path / text.tokenizer, text))
    sliding = window is not None
    decoder = BiasedDecoder(parts.language_model, head_of(traced, language), shape.layers, sliding=sliding)
    extras = DecoderExtras(biases=(FULL, SLIDING) if sliding else (FULL,))
    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=(
            picture_plan(
                PictureEncoder(parts.vision_tower, parts.multi_modal_projector),
                vision.image_size, per_picture, shape.hidden,
            ),
            decoder_plan(decoder, shape, extras),
            embed_plan(parts.language_model.embed_tokens, float(parts.language_model.embed_tokens.embed_scale)),
        ),
        processing=processing,
        tokens=tokens,
        generation=generation_spec(traced.generation_config),
        context=shape.context,
        files=files,
        feeds=picture_feeds(image),
        **chat_original(original, context, _originals_inputs),
    )  # fmt: skip


def _originals_inputs(prompt: Prompt, _: Example) -> dict[str, Any]:
    return {**pixels_of(prompt), "token_type_ids": torch.zeros(1, len(prompt.ids), dtype=torch.int64)}

"""LLaVA-OneVision: pictures of any resolution and a question → an answer (Li et al., arXiv 2408.03326)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import LlavaOnevisionForConditionalGeneration

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import TextSpec
from edgemm.errors import CheckpointError
from edgemm.export.chat_vlm import chat_original, image_settings, language_shape
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.generation import generation_spec
from edgemm.export.image_spec import anyres_spec
from edgemm.export.loading import load_pair, token_ids
from edgemm.export.model_plan import Example, ModelPlan
from edgemm.export.picture_vlm import PictureEncoder, picture_feeds, picture_plan, pixels_of
from edgemm.export.plans import decoder_plan, embed_plan
from edgemm.export.text import chat_spec, tokenizer_files
from edgemm.export.tracing import use_plain_attention
from edgemm.export.wrappers import CausalDecoder
from edgemm.processing.text import Tokenizer
from edgemm.tasks.prompts.base import Context, Prompt

MODEL_TYPE = "llava_onevision"
TASKS = ("answer", "caption")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("vision_tower.|model.vision_tower.",),
    "projector": ("multi_modal_projector.|model.multi_modal_projector.",),
    "newline": ("image_newline|model.image_newline",),
    "language model": ("language_model.|model.language_model.",),
}
_RATIO = "anyres_max_"


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: vision_encoder (tower, projector and newline), decoder, embed_tokens."""
    original, traced = load_pair(LlavaOnevisionForConditionalGeneration, checkpoint)
    use_plain_attention(traced)
    config, parts, vision = traced.config, traced.model, traced.config.vision_config
    shape, layers = language_shape(config.text_config), config.vision_feature_layer
    if config.vision_feature_select_strategy != "full" or not config.vision_aspect_ratio.startswith(_RATIO):
        raise CheckpointError(
            f"{checkpoint.path} selects features by {config.vision_feature_select_strategy!r} and "
            f"{config.vision_aspect_ratio!r}: expected 'full' and '{_RATIO}…'"
        )
    side, most = vision.image_size // vision.patch_size, int(config.vision_aspect_ratio.removeprefix(_RATIO))
    image = anyres_spec(image_settings(checkpoint), config.image_grid_pinpoints, side, most)
    found, files = tokenizer_files(checkpoint)
    text = TextSpec(tokenizer=found.tokenizer, add_special_tokens=True)
    processing = Processing(image=image, text=text, chat=chat_spec(checkpoint), functions={"prompt": "anyres"})
    tokens = token_ids(traced, image=config.image_token_id)
    context = Context(processing, tokens, Tokenizer(checkpoint.path / text.tokenizer, text))
    encoder = PictureEncoder(
        parts.vision_tower,
        parts.multi_modal_projector,
        layers=[layers] if isinstance(layers, int) else list(layers),
        newline=parts.image_newline,
    )
    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=(
            picture_plan(encoder, vision.image_size, side**2, shape.hidden, newline=True),
            decoder_plan(CausalDecoder(parts.language_model, traced.lm_head, shape.layers), shape),
            embed_plan(parts.language_model.embed_tokens),
        ),
        processing=processing,
        tokens=tokens,
        generation=generation_spec(traced.generation_config),
        context=shape.context,
        files=files,
        feeds=picture_feeds(image),
        **chat_original(original, context, _originals_inputs),
    )


def _originals_inputs(prompt: Prompt, example: Example) -> dict[str, Any]:
    if example.image is None:
        return {}
    sizes, alone = torch.tensor([example.image.shape[:2]]), torch.tensor([1])
    return {"pixel_values": pixels_of(prompt)["pixel_values"][None], "image_sizes": sizes, "batch_num_images": alone}

"""LLaVA: a picture and a question → an answer (Liu et al., arXiv 2304.08485 and 2310.03744)."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import LlavaForConditionalGeneration

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import ResizeCropSpec, TextSpec
from edgemm.export.chat_vlm import chat_original, image_settings, language_shape
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.generation import generation_spec
from edgemm.export.image_spec import image_spec, square_fill
from edgemm.export.loading import load_pair, token_ids
from edgemm.export.model_plan import ModelPlan
from edgemm.export.picture_vlm import PictureEncoder, picture_feeds, picture_plan, pixels_of
from edgemm.export.plans import decoder_plan, embed_plan
from edgemm.export.text import chat_spec, tokenizer_files
from edgemm.export.tracing import use_plain_attention
from edgemm.export.wrappers import CausalDecoder
from edgemm.processing.text import Tokenizer
from edgemm.tasks.prompts.base import Context

MODEL_TYPE = "llava"
TASKS = ("answer", "caption")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("vision_tower.|model.vision_tower.",),
    "projector": ("multi_modal_projector.|model.multi_modal_projector.",),
    "language model": ("language_model.|model.language_model.",),
}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: vision_encoder (tower and projector), decoder, embed_tokens."""
    original, traced = load_pair(LlavaForConditionalGeneration, checkpoint)
    use_plain_attention(traced)
    config, parts, vision = traced.config, traced.model, traced.config.vision_config
    shape = language_shape(config.text_config)
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    first = int(config.vision_feature_select_strategy == "default")
    classes = int(
        hasattr(getattr(parts.vision_tower, "vision_model", parts.vision_tower).embeddings, "class_embedding")
    )
    per_picture = (vision.image_size // vision.patch_size) ** 2 + classes - first
    image = _image(checkpoint, vision.image_size, per_picture)
    found, files = tokenizer_files(checkpoint)
    text = TextSpec(tokenizer=found.tokenizer, add_special_tokens=True)
    processing = Processing(image=image, text=text, chat=chat_spec(checkpoint), functions={"prompt": "repeat"})
    tokens = token_ids(traced, image=config.image_token_id)
    context = Context(processing, tokens, Tokenizer(checkpoint.path / text.tokenizer, text))
    encoder = PictureEncoder(parts.vision_tower, parts.multi_modal_projector, layers=layers, first=first)
    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=(
            picture_plan(encoder, vision.image_size, per_picture, shape.hidden),
            decoder_plan(CausalDecoder(parts.language_model, traced.lm_head, shape.layers), shape),
            embed_plan(parts.language_model.embed_tokens),
        ),
        processing=processing,
        tokens=tokens,
        generation=generation_spec(traced.generation_config),
        context=shape.context,
        files=files,
        feeds=picture_feeds(image),
        **chat_original(original, context, pixels_of),
    )


def _image(checkpoint: Checkpoint, size: int, tokens: int) -> ResizeCropSpec:
    settings = image_settings(checkpoint)
    spec = image_spec(settings, size)
    fill = square_fill(settings) if settings.get("do_pad") else None
    return spec.model_copy(update={"image_seq_len": tokens, "square_fill": fill})

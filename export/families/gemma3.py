"""Gemma 3: pictures and a question → an answer (Gemma Team, arXiv 2503.19786)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Gemma3ForConditionalGeneration

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import ChatSpec, MaskSpec, ResizeCropSpec, TextSpec
from edgemm.errors import CheckpointError
from edgemm.export.chat_vlm import chat_original, image_settings, language_shape
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.generation import generation_spec
from edgemm.export.image_spec import image_spec
from edgemm.export.loading import load_pair, token_ids
from edgemm.export.model_plan import Example, ModelPlan
from edgemm.export.picture_vlm import BiasedDecoder, PictureEncoder, head_of, picture_feeds, picture_plan, pixels_of
from edgemm.export.plans import DecoderExtras, decoder_plan, embed_plan
from edgemm.export.text import chat_spec, tokenizer_files
from edgemm.export.tracing import use_plain_attention
from edgemm.processing.text import Tokenizer
from edgemm.tasks.masks import FULL, SLIDING
from edgemm.tasks.prompts.base import Context, Prompt

MODEL_TYPE = "gemma3"
TASKS = ("answer", "caption")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("vision_tower.|model.vision_tower.",),
    "projector": ("multi_modal_projector.|model.multi_modal_projector.",),
    "language model": ("language_model.|model.language_model.",),
}


class SoftTokens(nn.Module):
    """Patches [N, P, D] → soft tokens [N, T, hidden]: means of squares of patches, normed, projected."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.pool, self.norm = projector.avg_pool, projector.mm_soft_emb_norm
        self.weight, self.side = projector.mm_input_projection_weight, projector.patches_per_image

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        pooled = self.pool(x.transpose(1, 2).unflatten(2, (self.side, self.side))).flatten(2).transpose(1, 2)
        return torch.matmul(self.norm(pooled), self.weight)


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: vision_encoder (tower and projector), decoder with two masks, embed_tokens (scaled)."""
    original, traced = load_pair(Gemma3ForConditionalGeneration, checkpoint)
    use_plain_attention(traced)
    config, parts, language = traced.config, traced.model, traced.config.text_config
    if language.use_bidirectional_attention:
        raise CheckpointError(f"{checkpoint.path} attends in both directions: it is an embedder, not a chat model")
    shape = language_shape(language)
    size = config.vision_config.image_size
    image = _image(checkpoint, size, config.mm_tokens_per_image)
    found, files = tokenizer_files(checkpoint)
    text = TextSpec(tokenizer=found.tokenizer, add_special_tokens=True)
    tokens = token_ids(traced, image=config.image_token_id)
    tokenizer = Tokenizer(checkpoint.path / text.tokenizer, text)
    mask = MaskSpec(kind="image_blocks", window=language.sliding_window)
    chat = _chat(checkpoint, tokenizer, config)
    processing = Processing(image=image, text=text, chat=chat, mask=mask, functions={"prompt": "repeat"})
    decoder = BiasedDecoder(parts.language_model, head_of(traced, language), shape.layers, sliding=True)
    encoder = PictureEncoder(parts.vision_tower, SoftTokens(parts.multi_modal_projector))
    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=(
            picture_plan(encoder, size, config.mm_tokens_per_image, shape.hidden),
            decoder_plan(decoder, shape, DecoderExtras(biases=(FULL, SLIDING))),
            embed_plan(parts.language_model.embed_tokens, float(parts.language_model.embed_tokens.embed_scale)),
        ),
        processing=processing,
        tokens=tokens,
        generation=generation_spec(traced.generation_config),
        context=shape.context,
        files=files,
        feeds=picture_feeds(image),
        **chat_original(original, Context(processing, tokens, tokenizer), _originals_inputs),
    )


def _image(checkpoint: Checkpoint, size: int, tokens: int) -> ResizeCropSpec:
    settings = image_settings(checkpoint)
    if settings.get("do_pan_and_scan"):
        raise CheckpointError(
            "preprocessor_config.json asks for pan and scan, which edgemm does not do",
            hint='set "do_pan_and_scan" to false, as the published checkpoints have it',
        )
    return image_spec(settings, size).model_copy(update={"image_seq_len": tokens})


def _chat(checkpoint: Checkpoint, tokenizer: Tokenizer, config: Any) -> ChatSpec:
    """The template writes the token that begins a picture; the soft tokens and the one that ends it follow."""
    begin, end = (tokenizer.token_of(i) for i in (config.boi_token_index, config.eoi_token_index))
    if begin is None or end is None:
        raise CheckpointError(f"{checkpoint.path / 'tokenizer.json'} lacks the tokens around a picture")
    around = {"image_token": begin, "image_before": f"\n\n{begin}", "image_after": f"{end}\n\n"}
    return chat_spec(checkpoint).model_copy(update=around)


def _originals_inputs(prompt: Prompt, _: Example) -> dict[str, Any]:
    token = prompt.media[0].token if prompt.media else -1
    return {**pixels_of(prompt), "token_type_ids": (torch.tensor([prompt.ids]) == token).long()}

"""Vision encoder–decoders: a ViT that a text decoder attends to. TrOCR reads a line of text (Li et al., arXiv
2109.10282), ViT–GPT2 describes a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import VisionEncoderDecoderModel
from transformers.models.trocr.modeling_trocr import TrOCRSinusoidalPositionalEmbedding

from edgemm.bundle.manifest import Processing
from edgemm.errors import CheckpointError
from edgemm.export.chat_vlm import image_settings
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.image_spec import image_spec
from edgemm.export.loading import from_pretrained, shared_copy, token_ids
from edgemm.export.model_plan import Example, ModelPlan, Original, Reference
from edgemm.export.picture_vlm import picture_feeds
from edgemm.export.plans import DecoderShape, decoder_plan, embed_plan
from edgemm.export.seq2seq import (
    STEPS,
    CachedAttention,
    CrossDecoder,
    PictureEncoder,
    Stem,
    generation_spec,
    linear,
    said,
    use_linear,
    vision_encoder_plan,
)
from edgemm.export.text import tokenizer_files
from edgemm.export.tracing import use_plain_attention
from edgemm.export.wrappers import CrossProjection, layered_names

MODEL_TYPE = "vision-encoder-decoder"
TASKS = ("caption",)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("encoder.embeddings.", "encoder."),
    "decoder": ("decoder.",),
}

# A ViT's pooler does not feed the decoder; published checkpoints of TrOCR lack it.
_UNUSED = ("encoder.pooler.",)


@dataclass(frozen=True)
class _Half:
    """A decoder: its graph's module, its shape, its embedding table, and its cross projections (key, value)."""

    module: CrossDecoder
    shape: DecoderShape
    embedding: nn.Embedding
    scale: float
    projections: list[tuple[nn.Module, nn.Module]]


class _Tower(nn.Module):
    """pixel_values → the states that the decoder attends to."""

    def __init__(self, encoder: nn.Module, projection: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, projection

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.encoder(pixel_values).last_hidden_state
        return states if self.projection is None else self.projection(states)


def _trocr(model: Any, tokens: int) -> _Half:
    decoder, config = model.model.decoder, model.config
    heads = config.decoder_attention_heads
    projections = [(x.encoder_attn.k_proj, x.encoder_attn.v_proj) for x in decoder.layers]
    for i, layer in enumerate(decoder.layers):
        for name, cross in (("self_attn", False), ("encoder_attn", True)):
            old = getattr(layer, name)
            parts = (old.q_proj, old.k_proj, old.v_proj, old.out_proj)
            setattr(layer, name, CachedAttention(*parts, heads, i, cross=cross))
    positions = decoder.embed_positions
    if config.use_learned_position_embeddings:
        table = positions.weight[positions.offset :]
    else:
        table = positions.weights[positions.padding_idx + 1 :]
    shape = DecoderShape(
        layers=config.decoder_layers,
        hidden=config.hidden_size,
        kv_heads=heads,
        head_dim=config.hidden_size // heads,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        cross_heads=heads,
        cross_max=tokens,
    )
    module = CrossDecoder(Stem(table, decoder.layernorm_embedding), decoder.layers, model.output_projection)
    return _Half(module, shape, decoder.embed_tokens, decoder.embed_tokens.embed_scale, projections)


def load(checkpoint: Checkpoint) -> Any:
    """The original in fp32, whole: CheckpointError where a weight that a graph takes is missing."""
    model = from_pretrained(VisionEncoderDecoderModel, checkpoint, _UNUSED)
    for module in model.modules():
        if isinstance(module, TrOCRSinusoidalPositionalEmbedding):
            # A plain attribute and no buffer: loading leaves it without numbers.
            module.weights = module.get_embedding(module.weights.shape[0], module.embedding_dim, module.padding_idx)
    return model


def _gpt2(model: Any, tokens: int) -> _Half:
    decoder, config = model.transformer, model.config
    fused = [x.crossattention.c_attn for x in decoder.h]
    projections: list[tuple[nn.Module, nn.Module]] = [(linear(c, 0, 2), linear(c, 1, 2)) for c in fused]
    use_linear(decoder)
    shape = DecoderShape(
        layers=config.n_layer,
        hidden=config.n_embd,
        kv_heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        vocabulary=config.vocab_size,
        context=config.n_positions,
        cross_heads=config.n_head,
        cross_max=tokens,
    )
    head = nn.Sequential(decoder.ln_f, model.lm_head)
    module = CrossDecoder(Stem(decoder.wpe.weight, None), decoder.h, head)
    return _Half(module, shape, decoder.wte, 1.0, projections)


_DECODERS = {"trocr": _trocr, "gpt2": _gpt2}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: vision_encoder, decoder, embed_tokens."""
    kind = checkpoint.config.get("decoder", {}).get("model_type", "")
    if kind not in _DECODERS:
        raise CheckpointError(
            f"the decoder of {checkpoint.path} is a {kind or 'nameless model'}: expected {' or '.join(_DECODERS)}",
            hint="run: edgemm export --list-families",
        )
    original = load(checkpoint)
    traced = shared_copy(original)
    use_plain_attention(traced)
    settings = image_settings(checkpoint)
    image = image_spec(settings, traced.config.encoder.image_size)
    tower = _Tower(traced.encoder, getattr(traced, "enc_to_dec_proj", None))
    with torch.no_grad():
        _, length, width = tower(torch.zeros(1, 3, image.height_px, image.width_px)).shape
    half = _DECODERS[kind](traced.decoder, length)
    text, files = tokenizer_files(checkpoint)
    tokens = token_ids(traced)
    generation = generation_spec(traced.generation_config, half.shape.context)

    feeds = picture_feeds(image)

    def reference(example: Example) -> Reference:
        values = torch.from_numpy(feeds(example)["vision_encoder"]["pixel_values"])
        with torch.no_grad():
            ids = original.generate(pixel_values=values, max_new_tokens=STEPS, do_sample=False)[0]
        return said(ids[1:].tolist(), tokens.eos)

    cross = layered_names("cross", half.shape.layers)
    encoder = PictureEncoder(tower, CrossProjection(half.projections, half.shape.cross_heads))
    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=(
            vision_encoder_plan(
                encoder, (image.height_px, image.width_px), (length, width), cross, half.shape.cross_heads
            ),
            decoder_plan(half.module, half.shape),
            embed_plan(half.embedding, half.scale),
        ),
        processing=Processing(image=image, text=text, functions={"caption": "encoder_decoder"}),
        tokens=tokens,
        generation=generation,
        context=half.shape.context,
        files=files,
        feeds=feeds,
        reference=reference,
        original=Original(original),
    )

"""BLIP: a picture → a caption, or a picture and a question → an answer (Li et al., arXiv 2201.12086).

`architectures` tells the two apart. The question encoder attends to the picture, the answer's decoder to the question.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import BlipForConditionalGeneration, BlipForQuestionAnswering

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import TokensSpec
from edgemm.errors import CheckpointError
from edgemm.export.chat_vlm import image_settings
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import Feeds, Port
from edgemm.export.image_spec import image_spec
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import Example, ModelPlan, Original, Reference
from edgemm.export.picture_vlm import picture_feeds
from edgemm.export.plans import DecoderExtras, DecoderShape, decoder_plan, embed_plan
from edgemm.export.seq2seq import (
    STEPS,
    CachedAttention,
    CrossDecoder,
    PictureEncoder,
    Stem,
    generation_spec,
    padding_bias,
    said,
    text_encoder_plan,
    vision_encoder_plan,
)
from edgemm.export.text import tokenizer_files
from edgemm.export.tracing import cache_argument, encoder_decoder_cache, use_plain_attention
from edgemm.export.wrappers import CrossProjection, Tensors, layered_names
from edgemm.processing.text import Tokenizer

MODEL_TYPE = "blip"
TASKS = ("caption", "answer")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("vision_model.",),
    "decoder": ("text_decoder.",),
}

_CLASSES: dict[str, tuple[str, Any]] = {
    "BlipForConditionalGeneration": ("caption", BlipForConditionalGeneration),
    "BlipForQuestionAnswering": ("answer", BlipForQuestionAnswering),
}


class _Tower(nn.Module):
    """pixel_values [N, 3, H, W] → states [N, T, D]."""

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.vision(pixel_values).last_hidden_state
        return states


class QuestionEncoder(nn.Module):
    """input_ids, attention_mask and the picture's keys and values → states and the decoder's cross keys and values."""

    def __init__(self, model: Any, cross: CrossProjection) -> None:
        super().__init__()
        words = model.embeddings
        self.words, self.stem = words.word_embeddings, Stem(words.position_embeddings.weight, words.LayerNorm)
        self.layers, self.cross = model.encoder.layer, cross

    def forward(self, feeds: Feeds) -> Tensors:
        """See the class."""
        embeds = self.words(feeds["input_ids"])
        picture = [feeds[n] for n in layered_names("image_cross", len(self.layers))]
        cache = encoder_decoder_cache([], picture)
        bias = padding_bias(feeds["attention_mask"], embeds.dtype)
        x = self.stem(embeds, torch.arange(embeds.shape[1])[None])
        for layer in self.layers:
            given = cache_argument(layer, cache)
            x = layer(x, encoder_hidden_states=picture[0], attention_mask=bias, **given)
        return (x, *self.cross(x))


def _projections(layers: Any) -> list[tuple[nn.Module, nn.Module]]:
    return [(x.crossattention.self.key, x.crossattention.self.value) for x in layers]


def _use_cached_attention(layers: Any, *, remembers: bool) -> None:
    for i, layer in enumerate(layers):
        for block, cross in ((layer.attention, False), (layer.crossattention, True)):
            old = block.self
            heads = old.num_attention_heads
            block.self = CachedAttention(
                old.query, old.key, old.value, None, heads, i, cross=cross, remembers=remembers
            )


def _shape(config: Any, longest: int) -> DecoderShape:
    heads = config.num_attention_heads
    return DecoderShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        kv_heads=heads,
        head_dim=config.hidden_size // heads,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        cross_heads=heads,
        cross_max=longest,
    )


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """vision_encoder, decoder and embed_tokens; for questions a text_encoder too."""
    names = checkpoint.config.get("architectures") or [""]
    if names[0] not in _CLASSES:
        raise CheckpointError(
            f"{checkpoint.path} is a {names[0] or 'model without architectures'}: expected {' or '.join(_CLASSES)}",
            hint="name the class in architectures of config.json",
        )
    task, cls = _CLASSES[names[0]]
    original, traced = load_pair(cls, checkpoint)
    use_plain_attention(traced)
    config = traced.config.text_config
    image = image_spec(image_settings(checkpoint), traced.config.vision_config.image_size)
    text, files = tokenizer_files(checkpoint)
    text = text.model_copy(update={"add_special_tokens": True})
    tokens = TokensSpec(
        vocab_size=config.vocab_size,
        bos=config.bos_token_id,
        eos=(config.sep_token_id,),
        pad=config.pad_token_id,
        decoder_start=config.bos_token_id,
    )

    feeds = picture_feeds(image)

    def reference(example: Example) -> Reference:
        inputs: dict[str, Any] = {"pixel_values": torch.from_numpy(feeds(example)["vision_encoder"]["pixel_values"])}
        if task == "answer":
            ids = Tokenizer(checkpoint.path / "tokenizer.json", text).encode(example.question)
            inputs |= {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        with torch.no_grad():
            out = original.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[0]
        return said(out[1:].tolist(), tokens.eos)

    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=(task,),
        graphs=_graphs(traced, (image.height_px, image.width_px), asks=task == "answer"),
        processing=Processing(image=image, text=text, functions={task: "encoder_decoder"}),
        tokens=tokens,
        generation=generation_spec(traced.text_decoder.generation_config, config.max_position_embeddings),
        context=config.max_position_embeddings,
        files=files,
        feeds=feeds,
        reference=reference,
        original=Original(original),
    )


def _graphs(model: Any, size: tuple[int, int], *, asks: bool) -> tuple[Any, ...]:
    config, decoder = model.config.text_config, model.text_decoder.bert
    tower = _Tower(model.vision_model)
    with torch.no_grad():
        _, length, width = tower(torch.zeros(1, 3, *size)).shape
    shape = _shape(config, config.max_position_embeddings if asks else length)
    for_decoder = CrossProjection(_projections(decoder.encoder.layer), shape.cross_heads)
    sees, prefix = for_decoder, "cross"
    encoders: tuple[Any, ...] = ()
    if asks:
        layers = model.text_encoder.encoder.layer
        sees, prefix = CrossProjection(_projections(layers), shape.cross_heads), "image_cross"
        _use_cached_attention(layers, remembers=False)
        encoders = (_question_plan(QuestionEncoder(model.text_encoder, for_decoder), shape, length),)
    _use_cached_attention(decoder.encoder.layer, remembers=True)
    words = decoder.embeddings
    stem = Stem(words.position_embeddings.weight, words.LayerNorm)
    module = CrossDecoder(stem, decoder.encoder.layer, model.text_decoder.cls)
    names = layered_names(prefix, shape.layers)
    return (
        vision_encoder_plan(PictureEncoder(tower, sees), size, (length, width), names, shape.cross_heads),
        *encoders,
        decoder_plan(module, shape, DecoderExtras(cross_mask=asks)),
        embed_plan(words.word_embeddings),
    )


def _question_plan(module: QuestionEncoder, shape: DecoderShape, length: int) -> Any:
    dims = ("batch", shape.cross_heads, length, shape.head_dim)
    given = [Port(name, torch.float32, dims) for name in layered_names("image_cross", shape.layers)]
    reads = Port("input_ids", torch.int64, ("batch", "source"))
    return text_encoder_plan(module, reads, given, shape, shape.context, shape.vocabulary)

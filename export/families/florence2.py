"""Florence-2: a picture and a task → a caption, boxes, text with its corners (Xiao et al., arXiv 2311.06242).

DaViT at a fixed size; BART's encoder reads the picture's features and then the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Florence2ForConditionalGeneration

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import RegionsSpec
from edgemm.errors import CheckpointError
from edgemm.export.chat_vlm import image_settings
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import Feeds, GraphPlan, Port
from edgemm.export.image_spec import image_spec
from edgemm.export.loading import load_pair, token_ids
from edgemm.export.model_plan import Example, ModelPlan, Original, Reference
from edgemm.export.picture_vlm import picture_feeds
from edgemm.export.plans import DecoderExtras, DecoderShape, decoder_plan, embed_plan
from edgemm.export.seq2seq import (
    STEPS,
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
from edgemm.export.tracing import use_plain_attention
from edgemm.export.wrappers import CrossProjection, Tensors
from edgemm.processing.regions import task_prompt
from edgemm.processing.text import Tokenizer

MODEL_TYPE = "florence2"
TASKS = ("caption", "answer", "detect")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("model.vision_tower.", "model.multi_modal_projector."),
    "text encoder": ("model.language_model.encoder.",),
    "decoder": ("model.language_model.decoder.",),
}

_QUAD_PATTERN = r"(.+?)" + r"<loc_(\d+)>" * 8


class _Tower(nn.Module):
    """pixel_values [N, 3, H, W] → features [N, T, D] that stand before the prompt."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower, self.projector = model.vision_tower, model.multi_modal_projector

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.projector(self.tower(pixel_values).last_hidden_state)
        return features


class PromptEncoder(nn.Module):
    """inputs_embeds [B, S, D], picture and prompt in a row → states and the decoder's cross keys and values."""

    def __init__(self, encoder: Any, cross: CrossProjection) -> None:
        super().__init__()
        table = encoder.embed_positions.weight[encoder.embed_positions.offset :]
        self.stem = Stem(table, encoder.layernorm_embedding)
        self.layers, self.cross = encoder.layers, cross

    def forward(self, feeds: Feeds) -> Tensors:
        """See the class."""
        embeds = feeds["inputs_embeds"]
        bias = padding_bias(feeds["attention_mask"], embeds.dtype)
        x = self.stem(embeds, torch.arange(embeds.shape[1])[None])
        for layer in self.layers:
            # Not the layer's own forward: in fp16 it asks whether a value is infinite, which no graph can follow.
            attended, _ = layer.self_attn(x, attention_mask=bias)
            x = layer.self_attn_layer_norm(x + attended)
            x = layer.final_layer_norm(x + layer.fc2(layer.activation_fn(layer.fc1(x))))
        return (x, *self.cross(x))


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Four graphs: vision_encoder, text_encoder, decoder, embed_tokens."""
    original, traced = load_pair(Florence2ForConditionalGeneration, checkpoint)
    use_plain_attention(traced.model.language_model)
    # DaViT views what attention returns, so it must lie in one piece; its eager form is the plain one too.
    traced.model.vision_tower.config._attn_implementation = "eager"
    config = traced.config.text_config
    image = image_spec(image_settings(checkpoint), 768)
    text, files = tokenizer_files(checkpoint)
    tokens = token_ids(traced, image=traced.config.image_token_id)
    generation = generation_spec(traced.generation_config, config.max_position_embeddings)

    feeds = picture_feeds(image)

    def reference(example: Example) -> Reference:
        values = torch.from_numpy(feeds(example)["vision_encoder"]["pixel_values"])
        with torch.no_grad():
            places = original.get_image_features(values).pooler_output.shape[1]
            prompt = Tokenizer(checkpoint.path / "tokenizer.json", text).encode(task_prompt("<CAPTION>"))
            ids = torch.tensor([[tokens.image] * places + [tokens.bos, *prompt, tokens.eos[0]]])
            options = {"max_new_tokens": STEPS, "do_sample": False}
            out = original.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=values, **options)[
                0
            ]
        return said(out[1:].tolist(), tokens.eos)

    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=_graphs(traced, (image.height_px, image.width_px)),
        processing=Processing(
            image=image,
            text=text,
            regions=_regions(checkpoint),
            functions=dict.fromkeys(TASKS, "encoder_decoder"),
        ),
        tokens=tokens,
        generation=generation,
        context=config.max_position_embeddings,
        files=files,
        feeds=feeds,
        reference=reference,
        original=Original(original),
    )


def _graphs(model: Any, size: tuple[int, int]) -> tuple[GraphPlan, ...]:
    config, parts = model.config.text_config, model.model
    language, tower = parts.language_model, _Tower(parts)
    with torch.no_grad():
        _, length, width = tower(torch.zeros(1, 3, *size)).shape
    heads, longest = config.decoder_attention_heads, config.max_position_embeddings
    shape = DecoderShape(
        layers=config.decoder_layers,
        hidden=config.d_model,
        kv_heads=heads,
        head_dim=config.d_model // heads,
        vocabulary=config.vocab_size,
        context=longest,
        cross_heads=heads,
        cross_max=longest,
    )
    projections = [(x.encoder_attn.k_proj, x.encoder_attn.v_proj) for x in language.decoder.layers]
    reads = Port("inputs_embeds", torch.float32, ("batch", "source", shape.hidden))
    encoder = PromptEncoder(language.encoder, CrossProjection(projections, heads))
    positions = language.decoder.embed_positions
    stem = Stem(positions.weight[positions.offset :], language.decoder.layernorm_embedding)
    return (
        vision_encoder_plan(PictureEncoder(tower, None), size, (length, width)),
        text_encoder_plan(encoder, reads, (), shape, longest, shape.vocabulary),
        decoder_plan(CrossDecoder(stem, language.decoder.layers, model.lm_head), shape, DecoderExtras(cross_mask=True)),
        embed_plan(language.shared, language.shared.embed_scale),
    )


def _regions(checkpoint: Checkpoint) -> RegionsSpec:
    rules = checkpoint.json("processor_config.json").get("post_processor_config") or {}
    lines = rules.get("ocr", {})
    if lines.get("PATTERN") not in (None, _QUAD_PATTERN):
        raise CheckpointError(
            f"{checkpoint.path} reads text regions by another pattern: {str(lines['PATTERN'])[:80]!r}",
            hint="take post_processor_config of processor_config.json from the model that was fine-tuned",
        )
    return RegionsSpec(
        area_min=float(lines.get("AREA_THRESHOLD", 0.0)),
        banned_phrases=tuple(rules.get("phrase_grounding", {}).get("banned_grounding_tokens", ())),
    )

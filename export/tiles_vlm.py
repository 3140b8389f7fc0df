"""Idefics3 and SmolVLM: pictures in tiles, a SigLIP-like tower, a connector that folds patches, a Llama."""

from __future__ import annotations

import copy
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import TextSpec, TilesSpec
from edgemm.export.chat_vlm import chat_original, image_settings, language_shape
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.generation import generation_spec
from edgemm.export.graph import Feeds, GraphPlan, Port
from edgemm.export.image_spec import tiles_spec
from edgemm.export.loading import load_pair, token_ids
from edgemm.export.model_plan import Example, ModelPlan
from edgemm.export.plans import decoder_plan, embed_plan
from edgemm.export.text import chat_spec, tokenizer_files
from edgemm.export.tracing import use_plain_attention
from edgemm.export.wrappers import CausalDecoder
from edgemm.processing.text import Tokenizer
from edgemm.tasks.prompts.base import Context, Prompt


def tile_positions(embeddings: nn.Module) -> torch.Tensor:
    """The row of the position table that each patch of a whole tile takes, [patches].

    Not always 0, 1, 2, …: the original divides the patch's place by the side and sorts it into buckets, and the
    two roundings disagree for some sides (25, 29, 31, 40, …). So the original is asked.
    """
    probe = copy.deepcopy(embeddings)
    nn.init.zeros_(probe.patch_embedding.weight)
    nn.init.zeros_(probe.patch_embedding.bias)
    rows = torch.arange(probe.num_positions, dtype=torch.float32)[:, None]
    probe.position_embedding = nn.Embedding.from_pretrained(rows)
    side, size = probe.num_patches_per_side, probe.image_size
    with torch.no_grad():
        found: torch.Tensor = probe(torch.zeros(1, 3, size, size), torch.ones(1, side, side, dtype=torch.bool))
    return found[0, :, 0].round().long()


class TileEncoder(nn.Module):
    """pixel_values [N, 3, H, W], whole tiles → image_features [N · tokens, hidden].

    The processor cuts pictures into whole tiles, so every patch is real and its position is known beforehand:
    no mask, and no position arithmetic in the graph.
    """

    def __init__(self, vision: nn.Module, connector: nn.Module) -> None:
        super().__init__()
        self.patches = vision.embeddings.patch_embedding
        table = vision.embeddings.position_embedding.weight.detach()
        self.positions = nn.Parameter(table[tile_positions(vision.embeddings)], requires_grad=False)
        self.encoder = vision.encoder
        self.norm = vision.post_layernorm
        self.connector = connector

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """See the class."""
        x = self.patches(feeds["pixel_values"]).flatten(2).transpose(1, 2) + self.positions
        x = self.encoder(inputs_embeds=x, attention_mask=None).last_hidden_state
        return (self.connector(self.norm(x)).flatten(0, 1),)


def tiles_plan(
    cls: type[PreTrainedModel], checkpoint: Checkpoint, model_type: str, tasks: tuple[str, ...]
) -> ModelPlan:
    """Three graphs: vision_encoder (tower and connector), decoder, embed_tokens."""
    original, traced = load_pair(cls, checkpoint)
    use_plain_attention(traced)
    config, parts = traced.config, traced.model
    shape = language_shape(config.text_config)
    per_tile = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 // config.scale_factor**2
    image = tiles_spec(image_settings(checkpoint), per_tile)
    text, files = tokenizer_files(checkpoint)
    # A template that begins with the first token of every text has the last word: see `Context.encode`.
    text = TextSpec(tokenizer=text.tokenizer, add_special_tokens=True)
    processing = Processing(image=image, text=text, chat=chat_spec(checkpoint))
    tokens = token_ids(traced, image=config.image_token_id)
    context = Context(processing, tokens, Tokenizer(checkpoint.path / text.tokenizer, text))
    return ModelPlan(
        model_type=model_type,
        tasks=tasks,
        graphs=(
            _encoder(traced, per_tile, shape.hidden),
            decoder_plan(CausalDecoder(parts.text_model, traced.lm_head, shape.layers), shape),
            embed_plan(parts.text_model.embed_tokens),
        ),
        processing=processing,
        tokens=tokens,
        generation=generation_spec(traced.generation_config),
        context=shape.context,
        files=files,
        feeds=lambda example: _feeds(example, image),
        **chat_original(original, context, _originals_inputs),
    )


def _encoder(traced: Any, per_tile: int, hidden: int) -> GraphPlan:
    size = traced.config.vision_config.image_size
    return GraphPlan(
        role="vision_encoder",
        module=TileEncoder(traced.model.vision_model, traced.model.connector),
        inputs=(Port("pixel_values", torch.float32, ("tiles", 3, size, size)),),
        outputs=(Port("image_features", torch.float32, ("image_tokens", hidden)),),
        ranges={"tiles": (1, 1, 64), "image_tokens": (per_tile, per_tile, 64 * per_tile)},
        trace={"tiles": 2},
        checks=({"tiles": 1}, {"tiles": 3}),
    )


def _feeds(example: Example, spec: TilesSpec) -> dict[str, dict[str, NDArray[Any]]]:
    from edgemm.processing.image import preprocess

    if example.image is None:
        return {}
    return {"vision_encoder": {"pixel_values": preprocess(example.image, spec).pixel_values}}


def _originals_inputs(prompt: Prompt, _: Example) -> dict[str, Any]:
    found = [m.feeds["pixel_values"] for m in prompt.media]
    return {"pixel_values": torch.from_numpy(found[-1])[None]} if found else {}

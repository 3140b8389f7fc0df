"""SmolVLM: pictures and a question → an answer (Marafioti et al., arXiv 2504.05299)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import SmolVLMForConditionalGeneration

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import GenerationSpec
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import Feeds, GraphPlan, Port
from edgemm.export.image_spec import tiles_spec
from edgemm.export.loading import from_pretrained, token_ids
from edgemm.export.model_plan import Example, ModelPlan, Reference
from edgemm.export.plans import DecoderShape, decoder_plan, embed_plan
from edgemm.export.text import chat_spec, tokenizer_files
from edgemm.export.tracing import use_plain_attention
from edgemm.export.wrappers import CausalDecoder
from edgemm.processing.text import Tokenizer
from edgemm.tasks.prompts import make_prompt
from edgemm.tasks.prompts.base import Context, user

MODEL_TYPE = "smolvlm"
TASKS = ("answer", "caption")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("model.vision_model.encoder.layers.", "model.connector."),
    "language model": ("model.text_model.layers.",),
}


class TileEncoder(nn.Module):
    """pixel_values [N, 3, H, W], whole tiles → image_features [N · tokens, hidden].

    The processor cuts pictures into whole tiles, so every patch is real and its position is its place in the grid:
    no mask, and no position arithmetic in the graph.
    """

    def __init__(self, vision: nn.Module, connector: nn.Module) -> None:
        super().__init__()
        self.patches = vision.embeddings.patch_embedding
        self.positions = vision.embeddings.position_embedding
        self.encoder = vision.encoder
        self.norm = vision.post_layernorm
        self.connector = connector

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """See the class."""
        x = self.patches(feeds["pixel_values"]).flatten(2).transpose(1, 2) + self.positions.weight
        x = self.encoder(inputs_embeds=x, attention_mask=None).last_hidden_state
        return (self.connector(self.norm(x)).flatten(0, 1),)


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: vision_encoder (tower and connector), decoder, embed_tokens."""
    original = from_pretrained(SmolVLMForConditionalGeneration, checkpoint)
    traced = from_pretrained(SmolVLMForConditionalGeneration, checkpoint)
    use_plain_attention(traced)
    config, text_config = traced.config, traced.config.text_config
    parts, vision = traced.model, traced.config.vision_config
    size = vision.image_size
    per_tile = (size // vision.patch_size) ** 2 // config.scale_factor**2
    context = text_config.max_position_embeddings
    shape = DecoderShape(
        layers=text_config.num_hidden_layers,
        hidden=text_config.hidden_size,
        kv_heads=text_config.num_key_value_heads,
        head_dim=getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads,
        vocabulary=text_config.vocab_size,
        context=context,
    )
    encoder = GraphPlan(
        role="vision_encoder",
        module=TileEncoder(parts.vision_model, parts.connector),
        inputs=(Port("pixel_values", torch.float32, ("tiles", 3, size, size)),),
        outputs=(Port("image_features", torch.float32, ("image_tokens", shape.hidden)),),
        ranges={"tiles": (1, 1, 64), "image_tokens": (per_tile, per_tile, 64 * per_tile)},
        trace={"tiles": 2},
        checks=({"tiles": 1}, {"tiles": 3}),
    )
    image = tiles_spec(checkpoint.json("preprocessor_config.json"), per_tile)
    text, files = tokenizer_files(checkpoint)
    chat = chat_spec(checkpoint)
    tokens = token_ids(traced, image=config.image_token_id)
    processing = Processing(image=image, text=text, chat=chat)

    def feeds(example: Example) -> dict[str, dict[str, NDArray[Any]]]:
        from edgemm.processing.image import preprocess

        if example.image is None:
            return {}
        return {"vision_encoder": {"pixel_values": preprocess(example.image, image).pixel_values}}

    def reference(example: Example) -> Reference:
        context = Context(processing, tokens, Tokenizer(checkpoint.path / "tokenizer.json", text))
        prompt = make_prompt([user(example.question, [] if example.image is None else [example.image])], context)
        ids = torch.tensor([prompt.ids])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for media in prompt.media:
            inputs["pixel_values"] = torch.from_numpy(media.feeds["pixel_values"])[None]
        with torch.no_grad():
            said = original.generate(**inputs, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        return Reference(tokens=tuple(i for i in said.tolist() if i not in tokens.eos))

    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=(
            encoder,
            decoder_plan(CausalDecoder(parts.text_model, traced.lm_head, shape.layers), shape),
            embed_plan(parts.text_model.embed_tokens),
        ),
        processing=processing,
        tokens=tokens,
        generation=GenerationSpec(max_new_tokens=256),
        context=context,
        files=files,
        feeds=feeds,
        reference=reference,
    )

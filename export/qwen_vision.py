"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share: the vision tower as one graph, M-RoPE, and the plan of the whole model.

The tower sees one chunk a call (a picture, or a pair of frames), so that attention needs no mask; angles, windows and
interpolated positions come in as `aux.*`, which `edgemm.processing.patches` computes from the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import PatchesSpec
from edgemm.errors import CheckpointError
from edgemm.export.chat_vlm import Inputs, chat_original, image_settings, language_shape
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.generation import generation_spec
from edgemm.export.graph import Feeds, GraphPlan, Port, Sizes
from edgemm.export.image_spec import patches_spec
from edgemm.export.loading import load_pair, token_ids
from edgemm.export.model_plan import Example, ModelPlan
from edgemm.export.plans import DecoderExtras, DecoderShape, decoder_plan, embed_plan
from edgemm.export.text import chat_spec, tokenizer_files
from edgemm.export.tracing import plain_attention, use_plain_attention
from edgemm.export.wrappers import CausalDecoder
from edgemm.processing.patches import grid_feeds, picture_chunks
from edgemm.processing.text import Tokenizer
from edgemm.tasks.prompts.base import Context, Prompt

_MOST_PATCHES = 65_536


@dataclass(frozen=True)
class Tower:
    """What differs between the towers. `width` is the patches' hidden size, `windowed` the blocks with windows."""

    width: int
    heads: int
    windowed: frozenset[int] = frozenset()
    window_patches: int = 0
    deepstack: tuple[int, ...] = ()
    table: bool = False


class PatchEncoder(nn.Module):
    """One chunk: pixel_values [patches, values], `aux.*` → image_features [tokens, hidden], deepstack.{i} likewise."""

    def __init__(self, visual: nn.Module, tower: Tower, merge: int) -> None:
        super().__init__()
        stem = visual.patch_embed.proj
        # The convolution's kernel is its stride: a matrix product over each patch.
        self.stem = nn.Linear(stem.weight[0].numel(), stem.weight.shape[0], bias=stem.bias is not None)
        self.stem.weight = nn.Parameter(stem.weight.detach().flatten(1), requires_grad=False)
        self.stem.bias = stem.bias
        self.blocks, self.merger, self.tower, self.merge = visual.blocks, visual.merger, tower, merge
        self.table = visual.pos_embed if tower.table else None
        self.deep = visual.deepstack_merger_list if tower.deepstack else None

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor, ...]:
        """See the class."""
        x = self.stem(feeds["pixel_values"])
        if self.table is not None:
            taps = F.embedding(feeds["aux.position_index"], self.table.weight)
            x = x + (taps * feeds["aux.position_weights"][:, :, None]).sum(1)
        deep = []
        for number, block in enumerate(self.blocks):
            x = x + self._attend(block.attn, block.norm1(x), feeds, number in self.tower.windowed)
            x = x + block.mlp(block.norm2(x))
            if self.deep is not None and number in self.tower.deepstack:
                deep.append(self.deep[self.tower.deepstack.index(number)](x))
        return (self.merger(x), *deep)

    def _attend(self, attention: nn.Module, x: torch.Tensor, feeds: Feeds, windowed: bool) -> torch.Tensor:
        heads, size = self.tower.heads, self.tower.width // self.tower.heads
        qkv = attention.qkv(x).unflatten(-1, (3 * heads, size))
        query, key, value = qkv.split(heads, dim=1)
        cos, sin = feeds["aux.cos"][:, None], feeds["aux.sin"][:, None]
        query, key = _turn(query, cos, sin), _turn(key, cos, sin)
        if not windowed:
            q, k, v = (t.transpose(0, 1)[None] for t in (query, key, value))
            mixed, _ = plain_attention(attention, q, k, v, None, attention.scaling)
            return attention.proj(mixed[0].flatten(1))
        rows = torch.cat([t.flatten(1) for t in (query, key, value)], dim=1)
        inside = F.embedding(feeds["aux.windows"], rows).unflatten(-1, (3 * heads, size)).transpose(1, 2)
        q, k, v = inside.split(heads, dim=1)
        mixed, _ = plain_attention(attention, q, k, v, feeds["aux.window_bias"], attention.scaling)
        flat = mixed.reshape(-1, self.tower.width)
        return attention.proj(F.embedding(feeds["aux.window_places"], flat))


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class MRope(nn.Module):
    """position_ids [3, B, S] → cosine and sine [B, S, head_dim]; every frequency turns with one of the three axes."""

    inv_freq: torch.Tensor

    def __init__(self, rotary: nn.Module, axes: list[int]) -> None:
        super().__init__()
        self.register_buffer("inv_freq", rotary.inv_freq.clone(), persistent=False)
        self.axes, self.scale = axes, rotary.attention_scaling

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = position_ids.index_select(0, torch.tensor(self.axes)).permute(1, 2, 0)
        angles = chosen.float() * self.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * self.scale).to(x.dtype), (angles.sin() * self.scale).to(x.dtype)


def sections(lengths: list[int]) -> list[int]:
    """The axis of every frequency where the axes take turns in sections (Qwen2-VL, Qwen2.5-VL)."""
    return [i % 3 for i, length in enumerate(lengths) for _ in range(length)]


def interleaved(lengths: list[int], frequencies: int) -> list[int]:
    """The axis of every frequency where rows and columns are woven into time (Qwen3-VL)."""
    axes = [0] * frequencies
    for axis in (1, 2):
        for place in range(axis, lengths[axis] * 3, 3):
            axes[place] = axis
    return axes


def _add(states: torch.Tensor, _where: Any, features: torch.Tensor) -> torch.Tensor:
    """Deep features are zero where there is no picture: no boolean mask in the graph."""
    return states + features


class DeepDecoder(CausalDecoder):
    """`CausalDecoder` whose first layers add `deepstack.{i}` [B, S, hidden] to what they pass on."""

    def __init__(self, model: nn.Module, head: nn.Module, layers: int, deepstack: int) -> None:
        super().__init__(model, head, layers)
        model._deepstack_process = _add
        self.deepstack = deepstack

    def more(self, feeds: Feeds) -> dict[str, Any]:
        return {"deepstack_visual_embeds": [feeds[f"deepstack.{i}"] for i in range(self.deepstack)]}


def encoder_plan(visual: nn.Module, tower: Tower, spec: PatchesSpec, hidden: int) -> GraphPlan:
    """`vision_encoder` of one chunk."""
    floats, ints = torch.float32, torch.int64
    values = 3 * spec.temporal_patch * spec.patch_px**2
    inputs = [
        Port("pixel_values", floats, ("patches", values)),
        Port("aux.cos", floats, ("patches", spec.rotary_dim)),
        Port("aux.sin", floats, ("patches", spec.rotary_dim)),
    ]
    if tower.windowed:
        inputs += [
            Port("aux.windows", ints, ("windows", tower.window_patches)),
            Port("aux.window_bias", floats, ("windows", 1, 1, tower.window_patches)),
            Port("aux.window_places", ints, ("patches",)),
        ]
    if tower.table:
        inputs += [
            Port("aux.position_index", ints, ("patches", 4)),
            Port("aux.position_weights", floats, ("patches", 4)),
        ]
    names = ("image_features", *(f"deepstack.{i}" for i in range(len(tower.deepstack))))
    trace, *checks = [_sizes(rows, columns, spec) for rows, columns in ((3, 5), (1, 1), (2, 6), (9, 4))]

    def make(sizes: Sizes, _rng: torch.Generator) -> Feeds:
        return {k: torch.from_numpy(v) for k, v in grid_feeds(sizes["rows"], sizes["columns"], spec).items()}

    return GraphPlan(
        role="vision_encoder",
        module=PatchEncoder(visual, tower, spec.merge),
        inputs=tuple(inputs),
        outputs=tuple(Port(name, floats, ("image_tokens", hidden)) for name in names),
        ranges={
            "patches": (spec.merge**2, 1024, _MOST_PATCHES),
            "image_tokens": (1, 256, _MOST_PATCHES // spec.merge**2),
            "windows": (1, 16, _MOST_PATCHES),
        },
        trace=trace,
        checks=tuple(checks),
        make=make,
    )


def _sizes(rows: int, columns: int, spec: PatchesSpec) -> dict[str, int]:
    """The sizes of a grid of `rows` by `columns` windows and a bit (one token where both are 1)."""
    rows, columns = rows * spec.merge, columns * spec.merge
    edge = (spec.window or 1) * spec.merge
    return {
        "rows": rows,
        "columns": columns,
        "patches": rows * columns,
        "image_tokens": rows * columns // spec.merge**2,
        "windows": -(-rows // edge) * -(-columns // edge),
    }


def vision_language_plan(
    checkpoint: Checkpoint,
    cls: Any,
    style: str,
    tower_of: Callable[[Any], Tower],
    options_of: Callable[[Any], Mapping[str, Any]] = lambda _vision: {},
) -> ModelPlan:
    """Three graphs: vision_encoder, decoder (M-RoPE), embed_tokens.

    `tower_of` and `options_of` read the vision configuration; the latter gives more fields of PatchesSpec.
    """
    original, traced = load_pair(cls, checkpoint)
    use_plain_attention(traced)
    config, text_config = traced.config, traced.config.text_config
    language, visual = traced.model.language_model, traced.model.visual
    shape = language_shape(text_config)
    language.rotary_emb = _mrope(language.rotary_emb, text_config)
    check_layers(text_config)
    tower = tower_of(config.vision_config)
    spec = patches_spec(
        image_settings(checkpoint),
        checkpoint.json("video_preprocessor_config.json"),
        config.vision_config,
        {"rotary_dim": tower.width // tower.heads, **options_of(config.vision_config)},
    )
    text, files = tokenizer_files(checkpoint)
    tokens = token_ids(traced, image=config.image_token_id, video=config.video_token_id)
    processing = Processing(image=spec, text=text, chat=chat_spec(checkpoint), functions={"prompt": style})
    context = Context(processing, tokens, Tokenizer(checkpoint.path / "tokenizer.json", text))
    deep = len(tower.deepstack)

    def feeds(example: Example) -> dict[str, dict[str, NDArray[Any]]]:
        if example.image is None:
            return {}
        chunks = picture_chunks(example.image, spec)
        return {
            "vision_encoder": {
                "pixel_values": chunks.pixel_values[0],
                **grid_feeds(chunks.rows, chunks.columns, spec),
            }
        }

    return ModelPlan(
        model_type=checkpoint.model_type,
        tasks=("answer", "caption"),
        graphs=(
            encoder_plan(visual, tower, spec, shape.hidden),
            decoder_plan(_decoder(language, traced.lm_head, shape, deep), shape, DecoderExtras(3, deepstack=deep)),
            embed_plan(language.embed_tokens),
        ),
        processing=processing,
        tokens=tokens,
        generation=generation_spec(traced.generation_config),
        context=shape.context,
        files=files,
        feeds=feeds,
        **chat_original(original, context, lambda prompt, example: _originals_inputs(prompt, example, context, spec)),
    )


def _decoder(language: nn.Module, head: nn.Module, shape: DecoderShape, deep: int) -> nn.Module:
    if deep:
        return DeepDecoder(language, head, shape.layers, deep)
    return CausalDecoder(language, head, shape.layers)


def _mrope(rotary: nn.Module, config: Any) -> MRope:
    kind = rotary.rope_type
    if kind in ("dynamic", "longrope"):
        raise CheckpointError(
            f"rotary embeddings of the type {kind} change with the length of the prompt and cannot be exported",
            hint="remove rope_scaling from config.json, or use yarn",
        )
    lengths = list(rotary.mrope_section)
    woven = "qwen3" in config.model_type
    frequencies = rotary.inv_freq.shape[0]
    return MRope(rotary, interleaved(lengths, frequencies) if woven else sections(lengths))


def check_layers(config: Any) -> None:
    """Raise CheckpointError where a layer's attention slides: none of the published checkpoints does."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise CheckpointError(
            f"layers with {', '.join(sorted(kinds))} are not exported for {config.model_type}",
            hint="set use_sliding_window to false in config.json",
        )


def _originals_inputs(prompt: Prompt, example: Example, context: Context, spec: PatchesSpec) -> Inputs:
    if example.image is None:
        return {}
    chunks = picture_chunks(example.image, spec)
    return {
        "pixel_values": torch.from_numpy(chunks.pixel_values[0]),
        "image_grid_thw": torch.tensor([[1, chunks.rows, chunks.columns]]),
        "mm_token_type_ids": (torch.tensor([prompt.ids]) == context.tokens.image).int(),
    }

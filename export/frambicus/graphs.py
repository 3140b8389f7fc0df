"""Frambicus as the graphs of a bundle: what one frame shows, what a memory holds, what is written over it.

A frame is looked at once (`vision_encoder`, `grid_encoder`), whatever is asked of it and however many windows it is
part of: nothing before `memory` depends on time or on other frames. The host picks what goes into a memory
(`edgemm.processing.memory`), so that no graph picks anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgemm.export.frambicus.finds import judged
from edgemm.export.frambicus.modeling import FrambicusCore
from edgemm.export.frambicus.spelling import Speller
from edgemm.export.frambicus.vision import VisionTower, cells_in
from edgemm.export.graph import Feeds, GraphPlan, Port, Sizes
from edgemm.export.plans import BATCH, DecoderExtras, DecoderShape, decoder_plan, embed_plan
from edgemm.export.tracing import encoder_decoder_cache, tensors_of
from edgemm.export.wrappers import CrossProjection, Tensors, layered_names
from edgemm.processing.objects import FACTS

MOST_FRAMES = 16
_PICTURES = (1, 1, 8)


class Look(nn.Module):
    """pixel_values [N, 3, H, W] → image_features [N, cells, features] and cell_logits [N, cells, classes].

    The mean of a picture's cell_logits are its class logits: the classifier is linear over a mean of cells.
    """

    def __init__(self, vision: VisionTower) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, feeds: Feeds) -> Tensors:
        """See the class."""
        grids = self.vision.grids(feeds["pixel_values"])
        cells = grids[-1].flatten(2).transpose(1, 2)
        features = cells_in([grid[:, None] for grid in grids], self.vision.scales)
        return features, self.vision.classifier(cells)


class Grid(nn.Module):
    """image_features [N, cells, features] → visual [N, cells, D] and finds [N, cells, D], both without time, and
    logits [N, cells, labels + 1] and pred_boxes [N, cells, 4] of the detector, whose queries are the cells.
    """

    def __init__(self, model: FrambicusCore, side: int) -> None:
        super().__init__()
        self.tokens, self.detector, self.finds = model.connector.tokens, model.detector, model.finds
        self.side = side

    def forward(self, feeds: Feeds) -> Tensors:
        """See the class."""
        features, tokens = feeds["image_features"], self.tokens
        visual = tokens.project(features) + tokens.where(self.side, self.side, features.device)
        own = self.detector.tokens
        x = own.project(features) + own.where(self.side, self.side, features.device)
        found = self.detector.search(x, self.side, self.side)
        finds = self.finds.known(found.states, found.boxes, judged(found.logits)[0])
        return visual, finds, found.logits, found.boxes


class Remember(nn.Module):
    """What 1…F frames show, and what the host picked of it → the text decoder's keys and values, `cross_mask` [1, T]
    and `image_embeds` [1, E].

    `visual` [F, cells, D] and `finds` [F, k, D] as `Grid` gives them, `find_classes` [F, k],
    `find_facts` [F, k, FACTS] and `find_mask` [F, k], `times_s` [F] before the newest frame; `concept_classes` [K] with
    `concept_scores` [K, 2] and `concept_cells` [K] as `Concepts.best` gives them. `frame_mask` [F] of zeros is no
    picture at all.
    """

    def __init__(self, model: FrambicusCore, side: int) -> None:
        super().__init__()
        self.connector, self.finds, self.concepts = model.connector, model.finds, model.concepts
        self.nulls, self.embedder, self.side = model.nulls, model.embedder, side
        self.table = nn.Parameter(model.table.detach().T, requires_grad=False)
        layers = model.text.layers
        self.cross = CrossProjection([(x.cross.k_proj, x.cross.v_proj) for x in layers], layers[0].cross.heads)

    def forward(self, feeds: Feeds) -> Tensors:
        """See the class."""
        seen, mask = self._seen(feeds)
        absent = (mask.sum(1, keepdim=True) == 0).long()
        nulls = self.nulls[:, None]
        states = torch.cat((seen, nulls[:1], nulls[1:]), dim=1)
        mask = torch.cat((mask, absent, torch.ones_like(absent)), dim=1)
        return (*self.cross(states), mask, self.embedder.of_image(seen, mask[:, : seen.shape[1]]))

    def _seen(self, feeds: Feeds) -> tuple[torch.Tensor, torch.Tensor]:
        shown, visual = feeds["frame_mask"][None], feeds["visual"]
        when = self.connector.tokens.when(feeds["times_s"])[:, None]
        cells = shown[:, :, None].expand(-1, -1, visual.shape[1]).flatten(1)
        parts = [self.connector.read((visual + when).flatten(0, 1)[None], cells, shown)]
        known, classes = feeds["finds"] + when, feeds["find_classes"]
        each = shown[0, :, None].expand(-1, classes.shape[1])
        known, each = known + self.finds.facts(feeds["find_facts"]), each * feeds["find_mask"]
        tokens, mask = self._spelled(self.finds.speller, classes, known, each)
        parts.append((tokens.flatten(0, 1)[None], mask.flatten()[None].to(shown.dtype)))
        where = self.connector.tokens.where(self.side, self.side, visual.device)
        known = self.concepts.known(feeds["concept_scores"], feeds["concept_cells"], where)[None]
        classes = feeds["concept_classes"][None]
        tokens, mask = self._spelled(self.concepts.speller, classes, known, shown.amax(1, keepdim=True))
        parts.append((tokens, mask.to(shown.dtype)))
        return torch.cat([p[0] for p in parts], dim=1), torch.cat([p[1] for p in parts], dim=1)

    def _spelled(
        self, speller: Speller, classes: torch.Tensor, known: torch.Tensor, shown: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids = speller.names[classes]
        return speller.spell(looked_up(self.table, ids.clamp(min=0)), ids >= 0, known, shown)


class Write(nn.Module):
    """The text decoder as `plans.decoder_plan` has it: one graph for prompt and steps, what it attends to as inputs."""

    def __init__(self, model: FrambicusCore) -> None:
        super().__init__()
        self.text, self.head = model.text, model.speech.proj_out
        self.layers = len(model.text.layers)

    def forward(self, feeds: Feeds) -> Tensors:
        """See the class."""
        past, cross = (
            [feeds[n] for n in layered_names(prefix, self.layers)] for prefix in ("past_key_values", "cross")
        )
        cache = encoder_decoder_cache(past, cross)
        states = self.text(
            feeds["inputs_embeds"],
            cross[0],  # the cache has its keys and values
            feeds["cross_mask"],
            feeds["attention_mask"],
            position_ids=feeds["position_ids"],
            cache=cache,
        )
        logits = self.head(states.index_select(1, feeds["logits_indices"]))
        return (logits, *tensors_of(cache.self_attention_cache))


class Read(nn.Module):
    """input_ids and attention_mask [B, S], over the keys and values of an empty memory → text_features [B, E]."""

    def __init__(self, model: FrambicusCore) -> None:
        super().__init__()
        self.text, self.embedder = model.text, model.embedder
        self.table = nn.Parameter(model.table.detach().T, requires_grad=False)
        self.layers = len(model.text.layers)

    def forward(self, feeds: Feeds) -> Tensors:
        """See the class."""
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        cross = [feeds[n].expand(ids.shape[0], -1, -1, -1) for n in layered_names("cross", self.layers)]
        cache = encoder_decoder_cache([], cross)
        states = self.text(looked_up(self.table, ids), cross[0], feeds["cross_mask"], mask, cache=cache)
        return (self.embedder.of_text(states, mask),)


def looked_up(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """ids [...] → [..., D]: columns of table [D, vocabulary]; in the head's layout one table serves all graphs."""
    return table.index_select(1, ids.flatten()).T.unflatten(0, ids.shape)


def graph_plans(model: FrambicusCore, size_px: tuple[int, int]) -> tuple[GraphPlan, ...]:
    """The graphs of what is seen and written; `model` attends plainly, and its tower's norms are folded."""
    side = size_px[0] // 32
    shape = decoder_shape(model, side)
    return (
        _look_plan(Look(model.vision), size_px, side),
        _grid_plan(model, side),
        decoder_plan(Write(model), shape, DecoderExtras(cross_mask=True)),
        embed_plan(model.get_input_embeddings()),
        _memory_plan(model, side, shape),
        _read_plan(model, side, shape),
    )


def decoder_shape(model: FrambicusCore, side: int) -> DecoderShape:
    """What the text decoder's ports depend on."""
    text = model.config.text_config
    heads = text.num_attention_heads
    return DecoderShape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        kv_heads=heads,
        head_dim=text.hidden_size // heads,
        vocabulary=text.vocab_size,
        context=text.max_position_embeddings,
        cross_heads=heads,
        cross_max=_memory_length(model, side, MOST_FRAMES, max(text.finds, text.finds_in_clips)),
    )


def _memory_length(model: FrambicusCore, side: int, frames: int, finds: int) -> int:
    text, latents = model.config.text_config, model.connector.latents
    visual = frames * side * side if latents is None else len(latents)
    return int(visual + (frames * finds + model.concepts.count) * text.concept_tokens + 2)


def _look_plan(module: Look, size_px: tuple[int, int], side: int) -> GraphPlan:
    vision, cells = module.vision, side * side
    features = sum(c * s**2 for c, s in zip(vision.channels, vision.scales, strict=True))
    return GraphPlan(
        role="vision_encoder",
        module=module,
        inputs=(Port("pixel_values", torch.float32, ("batch", 3, *size_px)),),
        outputs=(
            Port("image_features", torch.float32, ("batch", cells, features)),
            Port("cell_logits", torch.float32, ("batch", cells, vision.classifier.out_features)),
        ),
        ranges={"batch": _PICTURES},
        trace={"batch": 2},
        checks=({"batch": 1}, {"batch": 3}),
    )


def _grid_plan(model: FrambicusCore, side: int) -> GraphPlan:
    cells, width = side * side, model.config.text_config.hidden_size
    labels = model.detector.class_head.out_features
    features = sum(model.connector.tokens.sizes)
    return GraphPlan(
        role="grid_encoder",
        module=Grid(model, side),
        inputs=(Port("image_features", torch.float32, ("batch", cells, features)),),
        outputs=(
            Port("visual", torch.float32, ("batch", cells, width)),
            Port("finds", torch.float32, ("batch", cells, width)),
            Port("logits", torch.float32, ("batch", cells, labels)),
            Port("pred_boxes", torch.float32, ("batch", cells, 4)),
        ),
        ranges={"batch": _PICTURES},
        trace={"batch": 2},
        checks=({"batch": 1}, {"batch": 3}),
        treatment="dynamic",
    )


def _memory_plan(model: FrambicusCore, side: int, shape: DecoderShape) -> GraphPlan:
    text, cells = model.config.text_config, side * side
    classes, labels = len(model.concepts.speller.names), len(model.finds.speller.names)
    picked = model.concepts.count

    def make(sizes: Sizes, rng: torch.Generator) -> Feeds:
        frames, finds = sizes["frames"], sizes["finds"]
        return {
            "find_classes": torch.randint(0, labels, (frames, finds), generator=rng),
            "concept_classes": torch.randint(0, classes, (picked,), generator=rng),
            "concept_cells": torch.randint(0, cells, (picked,), generator=rng),
            "times_s": torch.arange(1 - frames, 1) * 0.4,
            "frame_mask": torch.full((frames,), int(sizes["shown"] > 0)),
            "find_mask": (torch.arange(finds) < finds - frames % 2).long().expand(frames, -1),
        }

    def sizes(frames: int, finds: int, shown: int = 2) -> dict[str, int]:
        length = _memory_length(model, side, frames, finds)
        return {"frames": frames, "finds": finds, "shown": shown, "source": length}

    longest = max(text.finds, text.finds_in_clips, 1)
    whole = (1, shape.cross_heads, "source", shape.head_dim)
    floats, ints = torch.float32, torch.int64
    return GraphPlan(
        role="memory",
        module=Remember(model, side),
        inputs=(
            Port("visual", floats, ("frames", cells, shape.hidden)),
            Port("finds", floats, ("frames", "finds", shape.hidden)),
            Port("find_classes", ints, ("frames", "finds")),
            Port("find_facts", floats, ("frames", "finds", FACTS)),
            Port("find_mask", ints, ("frames", "finds")),
            Port("times_s", floats, ("frames",)),
            Port("frame_mask", ints, ("frames",)),
            Port("concept_classes", ints, (picked,)),
            Port("concept_scores", floats, (picked, 2)),
            Port("concept_cells", ints, (picked,)),
        ),
        outputs=(
            *(Port(name, floats, whole) for name in layered_names("cross", shape.layers)),
            Port("cross_mask", ints, (1, "source")),
            Port("image_embeds", floats, (1, model.config.embedding_size)),
        ),
        ranges={
            "frames": (1, 1, MOST_FRAMES),
            "finds": (1, min(text.finds, longest), longest),
            "source": _source_range(model, side, shape),
        },
        trace=sizes(3, 2),
        checks=(sizes(1, longest), sizes(2, 1), sizes(5, 3), sizes(8, 4), sizes(1, 1, shown=0)),
        make=make,
        treatment="weight_only",
    )


def _read_plan(model: FrambicusCore, side: int, shape: DecoderShape) -> GraphPlan:
    def make(sizes: Sizes, rng: torch.Generator) -> Feeds:
        ids = torch.randint(0, shape.vocabulary, (sizes["batch"], sizes["tokens"]), generator=rng)
        mask = torch.ones_like(ids)
        if len(ids) > 1:
            mask[0, -1] = 0
        return {"input_ids": ids, "attention_mask": mask, "cross_mask": torch.ones(1, sizes["source"])}

    def sizes(batch: int, tokens: int, source: int) -> dict[str, int]:
        return {"batch": batch, "tokens": tokens, "source": source}

    dims: Sequence[Any] = (1, shape.cross_heads, "source", shape.head_dim)
    return GraphPlan(
        role="text_encoder",
        module=Read(model),
        inputs=(
            Port("input_ids", torch.int64, ("batch", "tokens")),
            Port("attention_mask", torch.int64, ("batch", "tokens")),
            *(Port(name, torch.float32, tuple(dims)) for name in layered_names("cross", shape.layers)),
            Port("cross_mask", torch.int64, (1, "source")),
        ),
        outputs=(Port("text_features", torch.float32, ("batch", model.config.embedding_size)),),
        ranges={
            "batch": BATCH,
            "tokens": (1, min(16, shape.context), shape.context),
            "source": _source_range(model, side, shape),
        },
        trace=sizes(2, 5, 4),
        checks=(sizes(1, 2, 4), sizes(1, 24, 9), sizes(3, 7, 4)),
        make=make,
        # As the decoder is, so that their weights are stored once.
        treatment="weight_only",
    )


def _source_range(model: FrambicusCore, side: int, shape: DecoderShape) -> tuple[int, int, int]:
    usual = _memory_length(model, side, 1, model.config.text_config.finds)
    return 1, min(usual, shape.cross_max), shape.cross_max

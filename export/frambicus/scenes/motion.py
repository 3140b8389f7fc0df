"""Clips in which one thing happens, with a sentence that says what, and when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgemm.export.frambicus.scenes.assets import Assets, Sprite
from edgemm.export.frambicus.scenes.backgrounds import Rgb, Rng, background, clutter
from edgemm.export.frambicus.scenes.compose import Layer, Thing, choose, facts, place, scaled, tilt
from edgemm.export.frambicus.scenes.config import ScenesConfig
from edgemm.export.frambicus.scenes.words import article, verb

_WAYS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
HAPPENINGS = (*_WAYS, "appears", "disappears", "grows", "shrinks")


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames uint8 [F, size, size, 3] at `times_s` [F], the sentence, and what is seen at the end.

    Between `start_s` and `end_s` it happens. `actor` is the code of the sprite that does it.
    """

    frames: Rgb
    times_s: tuple[float, ...]
    text: str
    happening: str
    actor: str
    start_s: float
    end_s: float
    things: tuple[Thing, ...]


def film(config: ScenesConfig, assets: Assets, split: str, index: int) -> Clip:
    """The `index`-th clip of a split. The same configuration and assets give the same pixels and facts."""
    rng = config.rng(split, "clip", index)
    pool = assets.pool(config, split)
    still = background(config, assets, split, rng)
    clutter(still, config, rng)
    happening = HAPPENINGS[rng.integers(len(HAPPENINGS))]
    (actor,) = choose(pool, 1, config, rng)
    others = {noun: sprites for noun, sprites in pool.items() if noun != actor.noun}
    around: list[Layer] = []
    count = int(rng.integers(config.bystanders[0], config.bystanders[1] + 1)) if others else 0
    for sprite in choose(others, count, config, rng) if count else ():
        layer = place(sprite, around, config, rng)
        if layer is not None:
            around.append(layer)
            layer.paint(still)
    return _acted(still, around, actor, happening, config, rng)


def _acted(still: Rgb, around: list[Layer], actor: Sprite, happening: str, config: ScenesConfig, rng: Rng) -> Clip:
    start, end = _span(happening, config, rng)
    poses = _poses(actor, happening, _progress(start, end, config.frames), config, rng)
    frames = np.repeat(still[None], config.frames, axis=0)
    for frame, pose in zip(frames, poses, strict=True):
        if pose is not None:
            pose.paint(frame)
    last = [*around, *([poses[-1]] if poses[-1] is not None else [])]
    period = config.frame_period_s
    return Clip(
        frames=frames,
        times_s=tuple(i * period for i in range(config.frames)),
        text=f"{article(actor.noun)} {_agreeing(happening, actor.noun)}",
        happening=happening,
        actor=actor.code,
        start_s=start * period,
        end_s=end * period,
        things=facts(last, config),
    )


def _agreeing(happening: str, noun: str) -> str:
    """ "moves left", and of scissors "move left"."""
    if verb(noun) == "is":
        return happening
    word, _, rest = happening.partition(" ")
    return f"{word.removesuffix('s')} {rest}".strip()


def _span(happening: str, config: ScenesConfig, rng: Rng) -> tuple[int, int]:
    """The frames between which it happens: appearing takes one step, all else most of the clip."""
    last = config.frames - 1
    if happening in ("appears", "disappears"):
        start = int(rng.integers(1, last - 1))
        return start, start + 1
    return int(rng.integers(0, 2)), int(rng.integers(last - 1, last + 1))


def _progress(start: int, end: int, frames: int) -> np.ndarray:
    return np.clip((np.arange(frames) - start) / (end - start), 0, 1)


def _poses(actor: Sprite, happening: str, progress: np.ndarray, config: ScenesConfig, rng: Rng) -> list[Layer | None]:
    """Where and how large the actor is in each frame, None where it is not there. It stays inside the picture."""
    picture, size = tilt(actor, config, rng), config.size_px
    share = rng.uniform(config.area[0], config.area[1] / 2)
    if happening in ("grows", "shrinks"):
        factor = rng.uniform(*config.growth)
        small = min(share, config.area[1] / factor)
        grown = progress if happening == "grows" else 1 - progress
        shapes = [scaled(picture, small * (1 + (factor - 1) * p), size) for p in grown]
    else:
        shapes = [scaled(picture, share, size)] * len(progress)
    middles = _middles(
        happening, progress, max(s.shape[1] for s in shapes), max(s.shape[0] for s in shapes), config, rng
    )
    layers: list[Layer | None] = [
        Layer(actor, shape, round(x - shape.shape[1] / 2), round(y - shape.shape[0] / 2))
        for shape, (x, y) in zip(shapes, middles, strict=True)
    ]
    if happening == "appears":
        return [layer if p >= 1 else None for layer, p in zip(layers, progress, strict=True)]
    if happening == "disappears":
        return [layer if p <= 0 else None for layer, p in zip(layers, progress, strict=True)]
    return layers


def _middles(
    happening: str, progress: np.ndarray, width: int, height: int, config: ScenesConfig, rng: Rng
) -> np.ndarray:
    """The middle (x, y) in each frame, [F, 2], of what is at most so wide and high."""
    way = np.array(_WAYS.get(happening, (0, 0)), float)
    room = np.maximum(0, config.size_px - np.array([width, height], float))
    path = np.minimum(way * rng.uniform(*config.way) * config.size_px, room)
    path = np.maximum(path, -room)
    first = np.array([width, height]) / 2 + np.maximum(0, -path) + rng.random(2) * (room - np.abs(path))
    return np.asarray(first + progress[:, None] * path)

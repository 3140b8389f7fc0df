"""Scenes: objects on a background, and the facts of them that every text is made from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemm.export.frambicus.scenes.assets import Assets, Rgba, Sprite
from edgemm.export.frambicus.scenes.backgrounds import Rgb, Rng, background, clutter
from edgemm.export.frambicus.scenes.config import ScenesConfig
from edgemm.export.frambicus.scenes.words import dominant_colour

_OPAQUE = 128
_FITS = 0.95


@dataclass(frozen=True)
class Thing:
    """One object: `box_px` (x0, y0, x1, y1) around what is seen of it, `visible` the share of it that is seen.

    `colour` is the name of the one colour that it has, None where it has several.
    """

    sprite: Sprite
    box_px: tuple[int, int, int, int]
    visible: float
    colour: str | None

    @property
    def noun(self) -> str:
        return self.sprite.noun

    @property
    def middle(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box_px
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture uint8 [size, size, 3] RGB and what is in it, from left to right. `nouns` are all that may occur."""

    picture: Rgb
    things: tuple[Thing, ...]
    nouns: tuple[str, ...]
    margin_px: float

    @property
    def groups(self) -> dict[str, list[Thing]]:
        """Noun → its things, in the order in which they come from the left."""
        found: dict[str, list[Thing]] = defaultdict(list)
        for thing in self.things:
            found[thing.noun].append(thing)
        return dict(found)

    def relations(self, one: Thing, other: Thing) -> tuple[str, ...]:
        """What holds beyond doubt of `one` and `other`: "left of", "right of", "above", "below"."""
        dx, dy = (a - b for a, b in zip(one.middle, other.middle, strict=True))
        held = (
            ("left of", -dx),
            ("right of", dx),
            ("above", -dy),
            ("below", dy),
        )
        return tuple(name for name, far in held if far >= self.margin_px)


@dataclass
class Layer:
    """A sprite as it lies on the canvas: colours and opacity [h, w, 4] with the left upper corner at (x, y)."""

    sprite: Sprite
    pixels: Rgba
    x: int
    y: int

    def mask(self, size: int) -> NDArray[np.bool_]:
        """Where it is opaque, [size, size]; what hangs over the edge is cut."""
        found = np.zeros((size, size), bool)
        rows, columns, top, left = self._inside(size)
        found[rows, columns] = self.pixels[top, left, 3] >= _OPAQUE
        return found

    def paint(self, picture: Rgb) -> None:
        """Blend it over `picture`."""
        rows, columns, top, left = self._inside(len(picture))
        patch = self.pixels[top, left].astype(np.float32)
        opacity = patch[:, :, 3:] / 255
        under = picture[rows, columns]
        picture[rows, columns] = np.rint(under + (patch[:, :, :3] - under) * opacity).astype(np.uint8)

    def _inside(self, size: int) -> tuple[slice, slice, slice, slice]:
        height, width = self.pixels.shape[:2]
        y0, y1 = np.clip((self.y, self.y + height), 0, size)
        x0, x1 = np.clip((self.x, self.x + width), 0, size)
        return slice(y0, y1), slice(x0, x1), slice(y0 - self.y, y1 - self.y), slice(x0 - self.x, x1 - self.x)


def compose(config: ScenesConfig, assets: Assets, split: str, index: int) -> Scene:
    """The `index`-th scene of a split. The same configuration and assets give the same pixels and facts."""
    rng = config.rng(split, "scene", index)
    pool = assets.pool(config, split)
    picture = background(config, assets, split, rng)
    clutter(picture, config, rng)
    layers: list[Layer] = []
    for sprite in choose(pool, int(rng.integers(config.objects[0], config.objects[1] + 1)), config, rng):
        layer = place(sprite, layers, config, rng)
        if layer is not None:
            layers.append(layer)
            layer.paint(picture)
    return Scene(picture, facts(layers, config), tuple(pool), config.margin * config.size_px)


def choose(pool: dict[str, list[Sprite]], count: int, config: ScenesConfig, rng: Rng) -> list[Sprite]:
    """Sprites of `count` objects, some of a kind that is there already, so that there is something to count."""
    nouns = list(pool)
    picked: list[str] = []
    for _ in range(count):
        again = picked and rng.random() < config.again
        picked.append(picked[rng.integers(len(picked))] if again else nouns[rng.integers(len(nouns))])
    return [pool[noun][rng.integers(len(pool[noun]))] for noun in picked]


def place(sprite: Sprite, under: list[Layer], config: ScenesConfig, rng: Rng) -> Layer | None:
    """A sprite somewhere on top of others so that enough of each is seen; None where there is no room for it."""
    room = config.crowded / (len(under) + 1)
    for _ in range(config.tries):
        share = min(rng.uniform(*config.area), max(room, config.area[0]))
        layer = drop(sprite, share, config, rng)
        if all(v >= config.visible for v in visible([*under, layer], config.size_px)):
            return layer
    return None


def drop(sprite: Sprite, share: float, config: ScenesConfig, rng: Rng) -> Layer:
    """A sprite, tilted and perhaps mirrored, wholly inside; its box has `share` of the picture's area."""
    turned = tilt(sprite, config, rng)
    pixels = scaled(turned, share, config.size_px)
    height, width = pixels.shape[:2]
    x, y = (int(rng.integers(config.size_px - side + 1)) for side in (width, height))
    return Layer(sprite, pixels, x, y)


def tilt(sprite: Sprite, config: ScenesConfig, rng: Rng) -> Rgba:
    """The sprite's picture at a random angle, cut to its pixels."""
    import cv2

    picture = sprite.picture()
    if not sprite.directed and rng.random() < config.mirrored:
        picture = picture[:, ::-1]
    height, width = picture.shape[:2]
    side = int(np.ceil(np.hypot(height, width)))
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-config.tilt_deg, config.tilt_deg), 1.0)
    turn[:, 2] += (side - width) / 2, (side - height) / 2
    premultiplied = picture.astype(np.float32)
    premultiplied[:, :, :3] *= premultiplied[:, :, 3:] / 255
    return _cut(cv2.warpAffine(premultiplied, turn, (side, side), flags=cv2.INTER_LINEAR))


def _cut(premultiplied: NDArray[np.float32]) -> Rgba:
    """Straight colours again, without empty edges."""
    opacity = premultiplied[:, :, 3:]
    colours = premultiplied[:, :, :3] * 255 / np.maximum(opacity, 1)
    solid = opacity[:, :, 0] >= _OPAQUE
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    whole = np.clip(np.concatenate((colours, opacity), axis=2), 0, 255)
    return np.asarray(whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], np.uint8)


def scaled(picture: Rgba, share: float, size: int) -> Rgba:
    """`picture` so large that its box has `share` of a square of `size`, and no edge is longer than fits."""
    import cv2

    height, width = picture.shape[:2]
    factor = np.sqrt(share * size * size / (height * width))
    factor = min(factor, _FITS * size / max(height, width))
    shape = max(4, round(width * factor)), max(4, round(height * factor))
    premultiplied = picture.astype(np.float32)
    premultiplied[:, :, :3] *= premultiplied[:, :, 3:] / 255
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    small = cv2.resize(premultiplied, shape, interpolation=way)
    small[:, :, :3] *= 255 / np.maximum(small[:, :, 3:], 1)
    return np.asarray(np.clip(np.rint(small), 0, 255), np.uint8)


def visible(layers: list[Layer], size: int) -> list[float]:
    """The share of each layer's opaque pixels that later ones leave uncovered."""
    seen = seen_masks(layers, size)
    return [float(m.sum() / max(1, layer.mask(size).sum())) for m, layer in zip(seen, layers, strict=True)]


def seen_masks(layers: list[Layer], size: int) -> list[NDArray[np.bool_]]:
    """Where each layer is seen, [size, size] each."""
    covered = np.zeros((size, size), bool)
    seen = []
    for layer in reversed(layers):
        mask = layer.mask(size)
        seen.append(mask & ~covered)
        covered |= mask
    return seen[::-1]


def facts(layers: list[Layer], config: ScenesConfig) -> tuple[Thing, ...]:
    """The things that the layers show, from left to right; one that is wholly covered or outside is none."""
    size = config.size_px
    things = []
    for layer, seen in zip(layers, seen_masks(layers, size), strict=True):
        if not seen.any():
            continue
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        opaque = layer.pixels[layer.pixels[:, :, 3] >= _OPAQUE]
        share = float(seen.sum() / max(1, len(opaque)))
        things.append(Thing(layer.sprite, box, share, dominant_colour(opaque[:, :3], config.colour_share)))
    return tuple(sorted(things, key=lambda t: (t.middle[0], t.middle[1])))

"""Idefics3 and SmolVLM: cutting a picture into tiles, and the prompt text that stands for them.

The vision tower sees squares of one size. A picture is enlarged or shrunk to a grid of such
squares; each is encoded, and so is the whole picture at the same size. The prompt names every tile
by row and column. Twin of transformers' `SmolVLMImageProcessor` and `SmolVLMProcessor`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgemm.bundle.spec import ChatSpec, TilesSpec
from edgemm.errors import InputError
from edgemm.processing.resample import Pixels, resize

_MAX_EDGE_PX = 4096


@dataclass(frozen=True, eq=False)
class Grid:
    """`rows · cols` tiles, then the whole picture; only the latter where `rows == cols == 0`."""

    tiles: tuple[Pixels, ...]
    rows: int
    cols: int


def _longest_edge(height: int, width: int, longest: int) -> tuple[int, int]:
    """The size with the longest edge set, the other rounded up to even; never over 4096 px."""
    aspect = width / height
    if width >= height:
        height, width = int(longest / aspect), longest
        height += height % 2
    else:
        height, width = longest, int(longest * aspect)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    aspect = width / height
    if width >= height and width > _MAX_EDGE_PX:
        height, width = int(_MAX_EDGE_PX / aspect), _MAX_EDGE_PX
    elif height > width and height > _MAX_EDGE_PX:
        height, width = _MAX_EDGE_PX, int(_MAX_EDGE_PX * aspect)
    return max(height, 1), max(width, 1)


def _whole_tiles(height: int, width: int, tile: int) -> tuple[int, int]:
    """The size rounded up to multiples of the tile, the longer edge first."""
    aspect = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / aspect) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * aspect) / tile) * tile
    return height, width


def split(image: Pixels, spec: TilesSpec) -> Grid:
    """`[H, W, 3]` uint8 → tiles `[max_image_size, max_image_size, 3]` uint8."""
    tile = spec.max_image_size
    image = resize(image, _longest_edge(image.shape[0], image.shape[1], spec.longest_edge), spec.resample)
    if not spec.do_image_splitting:
        return Grid((resize(image, (tile, tile), spec.resample),), 0, 0)
    image = resize(image, _whole_tiles(image.shape[0], image.shape[1], tile), spec.resample)
    rows, cols = image.shape[0] // tile, image.shape[1] // tile
    if rows == cols == 1:
        return Grid((image,), 0, 0)
    parts = [
        image[row * tile : (row + 1) * tile, col * tile : (col + 1) * tile]
        for row in range(rows)
        for col in range(cols)
    ]
    return Grid((*parts, resize(image, (tile, tile), spec.resample)), rows, cols)


def image_prompt(rows: int, cols: int, image_seq_len: int, chat: ChatSpec) -> str:
    """The text that stands for one picture: placeholders for every tile and for the whole."""
    fake, run = chat.fake_image_token, chat.image_token * image_seq_len
    lines = "".join(
        "".join(f"{fake}<row_{row + 1}_col_{col + 1}>{run}" for col in range(cols)) + "\n" for row in range(rows)
    )
    gap = "\n" if rows or cols else ""
    return f"{lines}{gap}{fake}{chat.global_image_token}{run}{fake}"


def expand_images(prompt: str, rows: Sequence[int], cols: Sequence[int], image_seq_len: int, chat: ChatSpec) -> str:
    """Replace the prompt's image tokens, in order, by what stands for each picture.

    Raises `InputError` where the prompt has more or fewer image tokens than there are pictures.
    """
    pieces = prompt.split(chat.image_token)
    if len(pieces) - 1 != len(rows):
        raise InputError(
            f"the prompt has {len(pieces) - 1} {chat.image_token} for {len(rows)} pictures",
            hint="give one image part for every picture",
        )
    texts = [image_prompt(r, c, image_seq_len, chat) for r, c in zip(rows, cols, strict=True)]
    return pieces[0] + "".join(text + piece for text, piece in zip(texts, pieces[1:], strict=True))

"""Text on pictures: OpenCV's TrueType fonts where it has them (5 and later), else its strokes."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Image = NDArray[np.uint8]

_STROKE_PX = 30.0


class Typeface:
    """Measures, wraps and draws one font. Sizes are the height of a line's letters in pixels."""

    def __init__(self) -> None:
        import cv2

        self._cv2: Any = cv2
        self._font: Any = cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None

    def width_px(self, text: str, size_px: int, weight: int = 500) -> int:
        """How wide the text will be."""
        if self._font is not None:
            box = self._cv2.getTextSize((16384, 64), text, (0, 0), self._font, size_px, weight)
            return int(box[0] + box[2])
        scale, thickness = self._stroke(size_px, weight)
        (width, _), _ = self._cv2.getTextSize(_ascii(text), 0, scale, thickness)
        return int(width)

    def draw(
        self, image: Image, text: str, x: int, baseline: int, size_px: int, colour: Colour,
        weight: int = 500,
    ) -> None:  # fmt: skip
        """Draws the text in place, anti-aliased, its baseline's left end at (x, baseline)."""
        if self._font is not None:
            self._cv2.putText(image, text, (x, baseline), colour, self._font, size_px, weight)
            return
        scale, thickness = self._stroke(size_px, weight)
        self._cv2.putText(image, _ascii(text), (x, baseline), 0, scale, colour, thickness, self._cv2.LINE_AA)

    def wrap(self, text: str, size_px: int, width_px: int, most: int) -> list[str]:
        """The text in lines no wider than `width_px`; of more than `most` lines the last ones are
        kept, since they are the newest, and an ellipsis says so."""
        lines: list[str] = []
        for word in text.split():
            joined = f"{lines[-1]} {word}" if lines else word
            if lines and self.width_px(joined, size_px) <= width_px:
                lines[-1] = joined
            else:
                lines += self._pieces(word, size_px, width_px)
        if len(lines) > most:
            lines = lines[-most:]
            lines[0] = self.cut(f"… {lines[0]}", size_px, width_px)
        return lines

    def cut(self, text: str, size_px: int, width_px: int) -> str:
        """The text on one line, shortened with an ellipsis where it is too wide."""
        if self.width_px(text, size_px) <= width_px:
            return text
        while text and self.width_px(f"{text}…", size_px) > width_px:
            text = text[:-1]
        return f"{text.rstrip()}…" if text else ""

    def _pieces(self, word: str, size_px: int, width_px: int) -> list[str]:
        """A word that is wider than a line, in pieces that are not."""
        pieces = [""]
        for letter in word:
            if pieces[-1] and self.width_px(pieces[-1] + letter, size_px) > width_px:
                pieces.append("")
            pieces[-1] += letter
        return pieces

    @staticmethod
    def _stroke(size_px: int, weight: int) -> tuple[float, int]:
        return size_px / _STROKE_PX, 2 if weight > 500 or size_px > 28 else 1


_SIGNS = str.maketrans({"“": '"', "”": '"', "’": "'", "‘": "'", "—": "-", "–": "-", "·": "|"})


def _ascii(text: str) -> str:
    """What stroke fonts can draw: accents off, typographic signs made plain."""
    plain = unicodedata.normalize("NFKD", text.translate(_SIGNS).replace("…", "..."))
    return plain.encode("ascii", "ignore").decode()

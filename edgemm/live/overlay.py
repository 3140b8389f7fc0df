"""The newest results drawn on a frame: labels, boxes, a caption, subtitles, an answer, the pace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.live.events import (
    AnswerDeltaEvent,
    AnswerEvent,
    CaptionEvent,
    DetectionsEvent,
    Event,
    LabelsEvent,
    SpeechEvent,
    StatsEvent,
    TranscriptEvent,
)
from edgemm.live.frames import Frame
from edgemm.live.typeface import Colour, Typeface

Image = NDArray[np.uint8]
Lines = list[tuple[str, Colour]]

WHITE: Colour = (255, 255, 255)
DIM: Colour = (190, 198, 206)
ACCENT: Colour = (94, 214, 190)
LISTENING: Colour = (255, 112, 96)

_BOX_COLOURS: tuple[Colour, ...] = (ACCENT, (255, 196, 84), (122, 176, 255), (255, 140, 200), (190, 230, 110))
_SMOOTH = 0.9


@dataclass
class _Said:
    text: str
    until_s: float


class Results:
    """The newest results of each kind, followed event by event. Not thread-safe: one a sink."""

    def __init__(self) -> None:
        self.labels: dict[str, LabelsEvent] = {}
        self.detections: dict[str, DetectionsEvent] = {}
        self.captions: dict[str, str] = {}
        self.speaking = False
        self.fps: float | None = None
        self.latency_ms: float | None = None
        self._transcript: _Said | None = None
        self._question = ""
        self._answer: _Said | None = None
        self._answering: int | None = None
        self._last_capture_s: float | None = None

    def update(self, event: Event) -> None:
        """Takes what is new from an event; most types change nothing."""
        if isinstance(event, LabelsEvent):
            self._pace(event)
            self.labels[event.source or ""] = event
        elif isinstance(event, DetectionsEvent):
            self._pace(event)
            self.detections[event.source or ""] = event
        elif isinstance(event, CaptionEvent):
            self.captions[event.source or ""] = event.text
        elif isinstance(event, SpeechEvent):
            self.speaking = event.edge == "start"
        elif isinstance(event, TranscriptEvent) and event.text.strip():
            self._transcript = _said(event.text, event.t_s)
        elif isinstance(event, AnswerDeltaEvent):
            fresh = event.question_id != self._answering or self._answer is None
            before = "" if fresh or self._answer is None else self._answer.text
            self._question, self._answering = event.question, event.question_id
            self._answer = _said(before + event.text, event.t_s)
        elif isinstance(event, AnswerEvent):
            self._question, self._answering = event.question, event.question_id
            self._answer = _said(event.text, event.t_s)
        elif isinstance(event, StatsEvent) and not event.latency_ms.p50:
            self.fps = None

    def transcript(self, t_s: float) -> str:
        """What was said last, while it is recent."""
        return _current(self._transcript, t_s)

    def answer(self, t_s: float) -> tuple[str, str]:
        """The last question and its answer so far, while they are recent."""
        text = _current(self._answer, t_s)
        return (self._question, text) if text else ("", "")

    def _pace(self, event: LabelsEvent | DetectionsEvent) -> None:
        self.latency_ms = _mix(self.latency_ms, event.latency_ms)
        if self._last_capture_s is not None and event.t_capture_s > self._last_capture_s:
            self.fps = _mix(self.fps, 1.0 / (event.t_capture_s - self._last_capture_s))
        self._last_capture_s = event.t_capture_s


class Overlay:
    """Draws on copies. Everything scales with the picture and stays inside it: what finds no
    room is left out, least important first."""

    def __init__(self) -> None:
        import cv2

        self._cv2: Any = cv2
        self._face = Typeface()

    def draw(self, frame: Frame, results: Results) -> Image:
        """A copy of the frame, uint8 [H, W, 3] RGB, with the results on it."""
        image = frame.image.copy()
        height, width = image.shape[:2]
        if width < 64 or height < 48:
            return image
        size = max(9, min(44, round(min(height / 26, width / 32))))
        self._boxes(image, results.detections.get(frame.source), size)
        free = self._subtitles(image, results, frame, size)
        right = self._chip(image, results, size)
        self._labels(image, results.labels.get(frame.source), size, right, free)
        return image

    def _boxes(self, image: Image, event: DetectionsEvent | None, size: int) -> None:
        """A frame around every object, with its label and score inside, the surest on top."""
        height, width = image.shape[:2]
        thick, small = max(1, size // 8), max(8, round(size * 0.7))
        pad = max(2, small // 3)
        for item in reversed(event.objects if event else ()):
            x0, y0, x1, y1 = (round(v) for v in item.box_px)
            colour = _BOX_COLOURS[(item.track_id or 0) % len(_BOX_COLOURS)]
            self._cv2.rectangle(image, (x0, y0), (x1, y1), colour, thick, self._cv2.LINE_AA)
            text = f"{label_name(item.label)} {100 * item.score:.0f} %"
            text_px = self._face.width_px(text, small)
            # Inside the picture even where the box is not.
            left = min(max(0, x0), max(0, width - text_px - 2 * pad))
            top = min(max(0, y0), max(0, height - small - 2 * pad))
            self._panel(image, left, top, text_px + 2 * pad, small + 2 * pad)
            self._face.draw(image, text, left + pad, top + pad + round(small * 0.87), small, colour)

    def _labels(self, image: Image, event: LabelsEvent | None, size: int, right: int, free: int) -> None:
        """Top left: up to three labels, each with its score as a number and as a bar."""
        if event is None or not event.labels:
            return
        line, pad, margin = round(size * 1.75), round(size * 0.6), round(size * 0.6)
        rows = min(3, len(event.labels), (free - 2 * margin - 2 * pad) // line)
        score_px = self._face.width_px("100 %", size)
        name_px = min(round(size * 13), right - 2 * margin - 4 * pad - score_px)
        if rows < 1 or name_px < 3 * size:
            return
        top = event.labels[:rows]
        names = [self._face.cut(label_name(item.label), size, name_px) for item in top]
        name_px = max(self._face.width_px(name, size, 600) for name in names)
        inner = max(name_px + 2 * pad + score_px, min(8 * size, right - 2 * margin - 2 * pad))
        self._panel(image, margin, margin, inner + 2 * pad, rows * line + pad)
        x, right_px = margin + pad, margin + pad + inner
        for row, (name, item) in enumerate(zip(names, top, strict=True)):
            baseline = margin + pad // 2 + row * line + round(size * 1.15)
            first = row == 0
            self._face.draw(image, name, x, baseline, size, WHITE if first else DIM, 600)
            score = f"{100 * item.score:.0f} %"
            score_x = right_px - self._face.width_px(score, size)
            self._face.draw(image, score, score_x, baseline, size, WHITE if first else DIM)
            bar = baseline + round(size * 0.32)
            self._bar(image, x, bar, inner, item.score, size, ACCENT if first else DIM)

    def _chip(self, image: Image, results: Results, size: int) -> int:
        """Top right: frames a second and latency. Returns where it begins."""
        width = int(image.shape[1])
        small, margin = max(8, round(size * 0.8)), round(size * 0.6)
        parts = []
        if results.fps is not None:
            parts.append(f"{results.fps:.0f} fps")
        if results.latency_ms is not None:
            parts.append(f"{results.latency_ms:.0f} ms")
        text, pad = " · ".join(parts), round(size * 0.45)
        text_px = self._face.width_px(text, small) if text else 0
        left = width - margin - text_px - 2 * pad
        if not text or left < width // 2 or width < 200:
            return width
        self._panel(image, left, margin, text_px + 2 * pad, small + 2 * pad)
        self._face.draw(image, text, left + pad, margin + pad + round(small * 0.87), small, DIM)
        return left

    def _subtitles(self, image: Image, results: Results, frame: Frame, size: int) -> int:
        """Bottom: the caption or the answer above, what was said below. Returns how much height is left free."""
        free, room, t_s = int(image.shape[0]), int(image.shape[1]) - 4 * size, frame.t_capture_s
        said = results.transcript(t_s)
        lines: Lines = [(text, WHITE) for text in self._face.wrap(said, size, room, 3)]
        if results.speaking and not lines:
            lines = [("listening…", LISTENING)]
        free = self._block(image, lines, size, free, live=results.speaking)
        question, answer = results.answer(t_s)
        if answer:
            asked: Lines = [(self._face.cut(question, size, room), ACCENT)] if question else []
            told: Lines = [(text, WHITE) for text in self._face.wrap(answer, size, room, 4)]
            return self._block(image, asked + told, size, free)
        caption = results.captions.get(frame.source, "")
        seen: Lines = [(text, ACCENT) for text in self._face.wrap(caption, size, room, 2)]
        return self._block(image, seen, size, free)

    def _block(self, image: Image, lines: Lines, size: int, bottom: int, *, live: bool = False) -> int:
        """Centred lines in a panel that ends above `bottom`; returns its upper edge."""
        line, pad, margin = round(size * 1.45), round(size * 0.55), round(size * 0.6)
        fit = (bottom - 2 * margin - 2 * pad) // line
        lines = lines[-max(0, fit) :] if fit > 0 else []
        if not lines:
            return bottom
        widths = [self._face.width_px(text, size) for text, _ in lines]
        dot = size if live else 0
        box_w = min(max(widths) + 4 * pad + dot, image.shape[1] - 2 * margin)
        box_h = len(lines) * line + 2 * pad - (line - size) // 2
        left, top = int(image.shape[1] - box_w) // 2, bottom - margin - box_h
        self._panel(image, left, top, box_w, box_h)
        for row, ((text, colour), width) in enumerate(zip(lines, widths, strict=True)):
            x = (image.shape[1] - width + dot) // 2
            self._face.draw(image, text, x, top + pad + row * line + size, size, colour)
        if live:
            centre = (left + pad + size // 2, top + box_h // 2)
            self._cv2.circle(image, centre, max(2, size // 4), LISTENING, -1, self._cv2.LINE_AA)
        return top

    def _bar(self, image: Image, x: int, y: int, width: int, part: float, size: int, colour: Colour) -> None:
        thick = max(1, size // 7)
        self._cv2.rectangle(image, (x, y), (x + width, y + thick), (84, 90, 98), -1)
        filled = round(width * float(np.clip(part, 0, 1)))
        if filled > 0:
            self._cv2.rectangle(image, (x, y), (x + filled, y + thick), colour, -1)

    def _panel(self, image: Image, x: int, y: int, width: int, height: int) -> None:
        """Darkens a rounded rectangle to a fifth: white letters are readable on any ground."""
        region = image[y : y + height, x : x + width]
        height, width = region.shape[:2]
        if not height or not width:
            return
        inside, outside = _rounded(width, height)
        dark = self._cv2.convertScaleAbs(region, alpha=0.2, beta=10)
        region[:] = self._cv2.blendLinear(dark, region, inside, outside)


@lru_cache(maxsize=64)
def _rounded(width: int, height: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights [height, width] inside and outside of a rounded rectangle, edges anti-aliased."""
    radius = min(height, width, 20) / 2
    x = np.abs(np.arange(width) + 0.5 - width / 2)[None, :] - (width / 2 - radius)
    y = np.abs(np.arange(height) + 0.5 - height / 2)[:, None] - (height / 2 - radius)
    distance = np.hypot(np.maximum(x, 0), np.maximum(y, 0)) - radius
    inside = np.clip(0.5 - distance, 0, 1).astype(np.float32)
    return inside, 1 - inside


def label_name(label: str) -> str:
    """The first of a label's synonyms, as data sets write them: "tabby, tabby cat" → "tabby"."""
    return label.split(",")[0].strip()


def _said(text: str, t_s: float) -> _Said:
    return _Said(text, t_s + max(3.0, 0.07 * len(text)))


def _current(said: _Said | None, t_s: float) -> str:
    return said.text if said is not None and t_s <= said.until_s else ""


def _mix(old: float | None, new: float) -> float:
    return new if old is None else _SMOOTH * old + (1 - _SMOOTH) * new

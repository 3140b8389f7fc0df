"""Florence-2's tasks: a task's name → the prompt that it stands for, and its words → places in the picture.

Twin of transformers' `Florence2Processor` (prompts) and its `post_process_generation` (answers), after Xiao et al.,
"Florence-2: Advancing a Unified Representation for a Variety of Vision Tasks" (arXiv 2311.06242).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from edgemm.bundle.spec import RegionsSpec
from edgemm.errors import InputError
from edgemm.results import Region

Kind = Literal["text", "boxes", "unnamed_boxes", "phrases", "quads", "polygons", "boxes_or_polygons"]
Point = tuple[float, float]

# Task → how its answer is read, and its prompt; "{input}" is what stands beside the task's name.
TASKS: dict[str, tuple[Kind, str]] = {
    "<OCR>": ("text", "What is the text in the image?"),
    "<OCR_WITH_REGION>": ("quads", "What is the text in the image, with regions?"),
    "<CAPTION>": ("text", "What does the image describe?"),
    "<DETAILED_CAPTION>": ("text", "Describe in detail what is shown in the image."),
    "<MORE_DETAILED_CAPTION>": ("text", "Describe with a paragraph what is shown in the image."),
    "<OD>": ("boxes", "Locate the objects with category name in the image."),
    "<DENSE_REGION_CAPTION>": ("boxes", "Locate the objects in the image, with their descriptions."),
    "<REGION_PROPOSAL>": ("unnamed_boxes", "Locate the region proposals in the image."),
    "<CAPTION_TO_PHRASE_GROUNDING>": ("phrases", "Locate the phrases in the caption: {input}"),
    "<REFERRING_EXPRESSION_SEGMENTATION>": ("polygons", "Locate {input} in the image with mask"),
    "<REGION_TO_SEGMENTATION>": ("polygons", "What is the polygon mask of region {input}"),
    "<OPEN_VOCABULARY_DETECTION>": ("boxes_or_polygons", "Locate {input} in the image."),
    "<REGION_TO_CATEGORY>": ("text", "What is the region {input}?"),
    "<REGION_TO_DESCRIPTION>": ("text", "What does the region {input} describe?"),
    "<REGION_TO_OCR>": ("text", "What text is in the region {input}?"),
}

_LOC = r"<loc_(\d+)>"
_LOCS = r"<loc_\d+>"
_MARK = rf"(?:{_LOCS}|<sep>|<poly>|</poly>)"
_QUAD = re.compile(r"(.+?)" + _LOC * 8)
_NAMED = re.compile(rf"[^<]+(?:{_LOCS}){{4,}}")
_UNNAMED = re.compile(rf"(?:{_LOCS}){{4,}}")
_LABEL = re.compile(r"^\s*(.*?)(?=<od>|</od>|<box>|</box>|<bbox>|</bbox>|<loc_)")
_OUTLINED = re.compile(rf"[^<]+{_MARK}{{4,}}")
_UNNAMED_OUTLINED = re.compile(rf"{_MARK}{{4,}}")
_OUTLINED_LABEL = re.compile(r"^\s*(.*?)(?=<od>|</od>|<box>|</box>|<bbox>|</bbox>|<loc_|<poly>)")
_OUTLINE = re.compile(rf"((?:{_LOCS})+)(?:<sep>|$)")


def task_of(question: str) -> str | None:
    """The task that a question names, None for free words."""
    return next((task for task in TASKS if task in question), None)


def task_prompt(question: str) -> str:
    """What the model reads for `<CAPTION>`, `<OPEN_VOCABULARY_DETECTION> a cat`, or free words.

    Raises InputError for words beside a task that takes none.
    """
    task = task_of(question)
    if task is None:
        return question
    prompt, beside = TASKS[task][1], question.replace(task, "").strip()
    if "{input}" in prompt:
        return prompt.replace("{input}", beside)
    if question != task:
        raise InputError(f"{task} takes nothing beside it, not {beside!r}")
    return prompt


def regions(text: str, task: str | None, size: tuple[int, int], spec: RegionsSpec) -> tuple[Region, ...]:
    """The places that `text`, special tokens written out, names in a picture of `size` (width, height) pixels."""
    kind = TASKS[task][0] if task else "text"
    plain = bare(text, "<pad>")
    if kind == "boxes_or_polygons":
        kind = "polygons" if "<poly>" in text else "boxes"
        found = _polygons(plain, size, spec, named=True) if kind == "polygons" else _boxes(plain, size, spec, _NAMED)
    elif kind == "polygons":
        found = _polygons(plain, size, spec, named=False)
    elif kind == "quads":
        found = _quads(plain, size, spec)
    elif kind == "text":
        return ()
    else:
        found = _boxes(plain, size, spec, _UNNAMED if kind == "unnamed_boxes" else _NAMED, banned=kind == "phrases")
    return tuple(found)


def bare(text: str, *more: str) -> str:
    """`text` without the marks of its beginning and end."""
    for mark in ("<s>", "</s>", *more):
        text = text.replace(mark, "")
    return text


def _points(bins: Sequence[int], size: tuple[int, int], spec: RegionsSpec) -> tuple[Point, ...]:
    """x, y, x, y, … in steps → whole pixels, rounded as fp32 rounds."""
    steps = np.array(bins, np.float32).reshape(-1, 2) + np.float32(0.5)
    scale = np.array([size[0] / spec.bins, size[1] / spec.bins], np.float32)
    return tuple((float(x), float(y)) for x, y in (steps * scale).astype(np.int32))


def _bins(text: str) -> list[int]:
    return [int(n) for n in re.findall(_LOC, text)]


def _boxes(
    text: str, size: tuple[int, int], spec: RegionsSpec, pattern: re.Pattern[str], *, banned: bool = False
) -> Iterator[Region]:
    for phrase in pattern.findall(text):
        label = _LABEL.search(phrase)
        # A name of several lines is none.
        if label is None or (banned and label[0].strip() in spec.banned_phrases):
            continue
        name = label[0].strip().encode("ascii", "ignore").decode("ascii")
        bins = _bins(phrase)
        for i in range(0, len(bins) - 3, 4):
            (x0, y0), (x1, y1) = _points(bins[i : i + 4], size, spec)
            yield Region(name, (x0, y0, x1, y1))


def _quads(text: str, size: tuple[int, int], spec: RegionsSpec) -> Iterator[Region]:
    for content, *bins in _QUAD.findall(text):
        corners = _points([int(n) for n in bins], size, spec)
        pairs = list(itertools.pairwise(corners))
        # As the original: three of the four terms of the polygon's area.
        area = 0.5 * abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs))
        if spec.area_min and area < size[0] * size[1] * spec.area_min:
            continue
        yield Region(content.strip(), _around([corners]), (corners,))


def _polygons(text: str, size: tuple[int, int], spec: RegionsSpec, *, named: bool) -> Iterator[Region]:
    for phrase in (_OUTLINED if named else _UNNAMED_OUTLINED).findall(text):
        label = _OUTLINED_LABEL.search(re.sub(rf"^{_LOCS}", "", phrase, count=1))
        if label is None:
            continue
        enclosed = "<poly>" in phrase and "</poly>" in phrase
        for part in re.findall(r"<poly>(.*?)</poly>", phrase) if enclosed else [phrase]:
            outlines = [_bins(found[1]) for found in _OUTLINE.finditer(part)]
            if outlines:
                even = [_points(b[: len(b) // 2 * 2], size, spec) for b in outlines]
                yield Region(label[0].strip(), _around(even), tuple(even))


def _around(polygons: Sequence[Sequence[Point]]) -> tuple[float, float, float, float]:
    points = [point for polygon in polygons for point in polygon] or [(0.0, 0.0)]
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)

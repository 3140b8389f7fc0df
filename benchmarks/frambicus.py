"""What a trained Frambicus is worth: every figure of its model card.

    python benchmarks/frambicus.py CHECKPOINT --data data --photos photos -o figures.json
    python benchmarks/frambicus.py edgemm/default/bundle --data data -o int8.json

`--data` is what `samples/recipes/frambicus_data.py` wrote, `--photos` what `samples/recipes/photos.py` did. Of a bundle
is measured what a device asks of it, by `edgemm.load`, without photographs and recommendation.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import edgemm
from edgemm.bundle.manifest import MANIFEST_NAME
from edgemm.export.frambicus import (
    FrambicusForDetection,
    FrambicusForQuestionAnswering,
    FrambicusForRecommendation,
    FrambicusForSpeechRecognition,
    FrambicusProcessor,
)
from edgemm.export.frambicus.scenes import ScenesConfig
from edgemm.export.frambicus.scenes.words import plural
from edgemm.processing.audio import load_audio
from edgemm.processing.image import to_rgb
from edgemm.processing.media import iter_video
from edgemm.tasks.boxes import Box, mean_average_precision
from edgemm.tasks.scoring import measured

Row = dict[str, Any]
_BATCH = 32
_FRAMES = 8
_FIRST = 10
PARTS = ("test", "unseen", "photos", "clips", "questions", "easy_vqa", "spoken", "recommendation")
OF_A_CHECKPOINT = ("photos", "recommendation")


class Model:
    """A checkpoint in fp32."""

    def __init__(self, path: Path) -> None:
        self.model = FrambicusForQuestionAnswering.from_pretrained(path).eval()
        self.processor = FrambicusProcessor.from_pretrained(path)

    def write(self, task: str, images: Sequence[Any], texts: Sequence[str], times_s: Any = None) -> list[str]:
        """What is said to each picture or clip. Pictures that follow each other and are the same are seen once."""
        said: list[str] = []
        with torch.no_grad():
            for start in range(0, len(texts), _BATCH):
                part = slice(start, start + _BATCH)
                own = list(images[part])
                unique = [image for i, image in enumerate(own) if i == 0 or image is not own[i - 1]]
                rows = np.cumsum([i > 0 and image is not own[i - 1] for i, image in enumerate(own)])
                seen = self.processor.look(unique, None if times_s is None else [times_s] * len(unique))
                memory = self.model.remember(self.model.see(**seen), None)
                asked = self.processor.write(task, list(texts[part]))
                ids = self.model.generate(
                    **asked,
                    memory=memory.states[rows],
                    memory_mask=memory.mask[rows],
                    max_new_tokens=48,
                    do_sample=False,
                )
                texts_said = self.processor.batch_decode(
                    ids[:, asked["input_ids"].shape[1] :], skip_special_tokens=True
                )
                said += [text.strip() for text in texts_said]
        return said

    def find(self, images: Sequence[Any]) -> Iterator[tuple[list[Box], list[Box]]]:
        """Objects with a box in shares of the picture, and the same as things, scored by whether anything is there."""
        labels = self.model.config.detector_config.id2label
        with torch.no_grad():
            for start in range(0, len(images), _BATCH):
                seen = self.processor.look(images[start : start + _BATCH])
                out: Any = FrambicusForDetection.forward(self.model, seen["pixel_values"])
                for logits, boxes in zip(out.logits.softmax(-1), out.pred_boxes, strict=True):
                    best = logits[:, :-1].max(-1)
                    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1).tolist()
                    rows = zip(best.indices.tolist(), corners, best.values.tolist(), strict=True)
                    there = zip(corners, (1 - logits[:, -1]).tolist(), strict=True)
                    named = [Box(labels[i], tuple(box), score) for i, box, score in rows]
                    yield named, [Box("thing", tuple(box), score) for box, score in there]

    def hear(self, samples: NDArray[np.float32], rate_hz: int) -> str:
        """The transcript."""
        given = self.processor.listen([samples], rate_hz)
        ids = FrambicusForSpeechRecognition.generate(self.model, given["input_values"])
        return self.processor.batch_decode(ids, skip_special_tokens=True)[0]


class Bundle:
    """A bundle, as a device runs it."""

    def __init__(self, path: Path) -> None:
        self.model = edgemm.load(path)

    def write(self, task: str, images: Sequence[Any], texts: Sequence[str], times_s: Any = None) -> list[str]:
        """See `Model.write`."""
        ways = {
            "caption": lambda image, _: self.model.caption(image, max_new_tokens=48),
            "answer": lambda image, text: self.model.answer(image, text, max_new_tokens=48),
            "describe": lambda frames, _: self.model.describe(frames, times_s, max_new_tokens=48),
        }
        return [ways[task](image, text).text for image, text in zip(images, texts, strict=True)]

    def find(self, images: Sequence[Any]) -> Iterator[tuple[list[Box], list[Box]]]:
        """See `Model.find`; one object has one box, and whether it is there is the score of its best name."""
        for image in images:
            height, width = to_rgb(image).shape[:2]
            found = self.model.detect(image, score_min=0.0).objects
            size = (width, height, width, height)
            named = [Box(of.label, tuple(np.array(of.box_px) / size), of.score) for of in found]
            yield named, [Box("thing", box.box_px, box.score) for box in named]

    def hear(self, samples: NDArray[np.float32], rate_hz: int) -> str:
        """See `Model.hear`."""
        return self.model.transcribe(samples, sample_rate_hz=rate_hz).text


def rows_of(folder: Path) -> list[Row]:
    """The rows of a data set, media as paths."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]
    return [row | {k: str(folder / row[k]) for k in ("image", "video", "audio") if k in row} for row in rows]


def nouns_in(text: str, known: Iterable[str]) -> set[str]:
    """The nouns that a caption names, in the singular; the longest first, each word once."""
    forms = {form: noun for noun in known for form in (noun, plural(noun))}
    found, rest = set(), f" {text} "
    for form in sorted(forms, key=len, reverse=True):
        pattern = rf"(?<![\w-]){re.escape(form)}(?![\w-])"
        if re.search(pattern, rest):
            found.add(forms[form])
            rest = re.sub(pattern, " ", rest)
    return found


def captions(model: Model | Bundle, rows: Sequence[Row], known: Sequence[str]) -> dict[str, float]:
    """Recall and precision of named objects, CIDEr and BLEU-4, in percent."""
    said = model.write("caption", [r["image"] for r in rows], [""] * len(rows))
    there = [set(r["objects"]["category"]) for r in rows]
    named = [nouns_in(text, known) for text in said]
    right = sum(len(a & b) for a, b in zip(there, named, strict=True))
    scores = measured("caption", [[r["text"]] for r in rows], said)
    return {
        "recall": 100 * right / sum(map(len, there)),
        "precision": 100 * right / max(1, sum(map(len, named))),
        **{name: float(value.total) for name, value in scores.items()},
    }


def answers(model: Model | Bundle, rows: Sequence[Row]) -> dict[str, float]:
    """Exact answers in percent, by kind of question."""
    said = model.write("answer", [r["image"] for r in rows], [r["question"] for r in rows])
    right: dict[str, list[bool]] = defaultdict(list)
    for row, text in zip(rows, said, strict=True):
        right[row.get("kind", "all")].append(text == row["answer"])
        if row.get("kind"):
            right["all"].append(text == row["answer"])
    return {kind: 100 * sum(own) / len(own) for kind, own in sorted(right.items())}


def boxes(model: Model | Bundle, rows: Sequence[Row], size_px: int) -> dict[str, float]:
    """mAP at an IoU of 0.5 by class, and over all classes as one, in percent."""
    truth = [
        [
            Box(name, (x / size_px, y / size_px, (x + w) / size_px, (y + h) / size_px))
            for name, (x, y, w, h) in zip(r["objects"]["category"], r["objects"]["bbox"], strict=True)
        ]
        for r in rows
    ]
    named, things = zip(*model.find([r["image"] for r in rows]), strict=True)
    nameless = [[Box("thing", b.box_px, b.score) for b in own] for own in truth]
    return {
        "map50": mean_average_precision(truth, list(named))["map50"],
        "map50_of_things": mean_average_precision(nameless, list(things))["map50"],
    }


def clips(model: Model | Bundle, rows: Sequence[Row]) -> dict[str, float]:
    """Exact sentences, and the right happening whoever does it, in percent."""
    said = []
    for row in rows:
        frames = [frame.image for frame in iter_video(Path(row["video"]))]
        chosen = [frames[round(i)] for i in np.linspace(0, len(frames) - 1, _FRAMES)]
        times = [row["frame_times_s"][round(i)] for i in np.linspace(0, len(frames) - 1, _FRAMES)]
        said += model.write("describe", [chosen], [""], times)
    happening = [
        text.endswith(row["happening"]) or _many(row["happening"]) in text for row, text in zip(rows, said, strict=True)
    ]
    exact = [text == row["text"] for row, text in zip(rows, said, strict=True)]
    return {"exact": 100 * sum(exact) / len(rows), "happening": 100 * sum(happening) / len(rows)}


def _many(happening: str) -> str:
    word, _, rest = happening.partition(" ")
    return f"{word.removesuffix('s')} {rest}".strip()


def photos(model: Model, folder: Path, listed: Path) -> dict[str, Any]:
    """How many captions have a word that the list has for the main thing, and of which the tower itself is right."""
    lines = [line for line in listed.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    things = {line.split(":")[0].strip(): line.split(":")[1].split(",")[0] for line in lines}
    words = [[word.strip().lower() for word in said.split("|")] for said in things.values()]
    files = [str(folder / name) for name in things]
    said = model.write("caption", files, [""] * len(files))
    labels = model.model.config.vision_config.id2label
    with torch.no_grad():
        grids = [model.model.vision.grids(model.processor.look([f])["pixel_values"][0])[-1] for f in files]
        top = [labels[int(model.model.vision.classifier(g.mean((2, 3))).argmax())].lower() for g in grids]
    right = [any(_has(text, word) for word in own) for text, own in zip(said, words, strict=True)]
    tower = [any(_has(name, word) for word in own) for name, own in zip(top, words, strict=True)]
    both = sum(a and b for a, b in zip(right, tower, strict=True))
    return {
        "right": 100 * sum(right) / len(right),
        "tower": 100 * sum(tower) / len(tower),
        "right_where_tower_is": 100 * both / sum(tower),
        "said": dict(zip(things, zip(said, top, strict=True), strict=True)),
    }


def _has(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}(s|es)?\b", text) is not None


def spoken(model: Model | Bundle, rows: Sequence[Row]) -> dict[str, Any]:
    """Exact answers in percent to questions that are transcribed first, and to the same ones typed."""
    heard = [asked_as_typed(model.hear(*load_audio(Path(row["audio"])))) for row in rows]
    pictures = [r["image"] for r in rows]
    found = {"spoken": model.write("answer", pictures, heard)}
    found["typed"] = model.write("answer", pictures, [r["question"] for r in rows])
    same = [text == row["question"] for text, row in zip(heard, rows, strict=True)]
    return {
        **{way: 100 * _mean(a == r["answer"] for a, r in zip(own, rows, strict=True)) for way, own in found.items()},
        "heard_word_for_word": 100 * _mean(same),
    }


def asked_as_typed(text: str) -> str:
    """A transcript as people type a question: small letters, a question mark, no full stops."""
    return re.sub(r"[^\w\s'-]", "", text).strip().lower() + "?"


def _mean(values: Iterable[bool]) -> float:
    return float(np.mean(list(values)))


def recommendation(model: Model, rows: Sequence[Row]) -> dict[str, float]:
    """Recall and NDCG at 10, in percent, of the one picture of a catalogue that a list of tags belongs to.

    `popularity` shows everybody the same ten. `towers` is what can be had without training: names of the vision tower's
    classes by their probabilities, against the tags, both as means of the speech model's embeddings.
    """
    net = model.model
    with torch.no_grad():
        seen = [model.processor.look([r["image"] for r in rows[i : i + _BATCH]]) for i in range(0, len(rows), _BATCH)]
        sights = [net.see(**one) for one in seen]
        image = torch.cat([net.embedder.of_image(*sight.seen) for sight in sights])
        asked = model.processor.write("recommend", [r["text"] for r in rows])
        text = FrambicusForRecommendation.forward(net, **asked).text_embeds
        names = net.concepts.speller.names
        known = (names >= 0).float()
        means = (net.table[names.clamp(min=0)] * known[..., None]).sum(1) / known.sum(1, keepdim=True)
        seen_names = torch.cat([sight.probabilities[:, 0, -1] for sight in sights]) @ means
        tags = [net.table[model.processor.tokenizer.encode(r["text"], add_special_tokens=False)].mean(0) for r in rows]
        untrained = nn.functional.normalize(torch.stack(tags), dim=-1) @ nn.functional.normalize(seen_names, dim=-1).T
    return {
        **_ranked(text @ image.T, ""),
        **_ranked(untrained, "_of_towers"),
        "recall@10_of_popularity": 100 * 10 / len(rows),
    }


def _ranked(scores: torch.Tensor, name: str) -> dict[str, float]:
    """`scores` [texts, pictures]; picture i belongs to text i."""
    places = (scores > scores.diagonal()[:, None]).sum(1).float()
    near = places < _FIRST
    gain = torch.where(near, 1 / torch.log2(places + 2), 0.0)
    return {f"recall@10{name}": 100 * float(near.float().mean()), f"ndcg@10{name}": 100 * float(gain.mean())}


def scenes(model: Model | Bundle, folder: Path, limit: int | None) -> dict[str, dict[str, float]]:
    """Captions and boxes of composed pictures."""
    rows = [row for row in rows_of(folder) if "objects" in row]
    known = sorted({name for row in rows for name in row["objects"]["category"]})
    found = rows[:limit]
    return {"captions": captions(model, found, known), "boxes": boxes(model, found, ScenesConfig().size_px)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="or a bundle")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--listed", type=Path, default=Path("samples/photos.txt"))
    parser.add_argument("--limit", type=int, default=0, help="so many rows of each data set; 0: all")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts of it; a bundle has no photos, recommendation")
    parser.add_argument("-o", "--output", type=Path, default=Path("figures.json"))
    options = parser.parse_args()
    limit, data = options.limit or None, options.data
    bundle = (options.checkpoint / MANIFEST_NAME).is_file()
    model: Any = Bundle(options.checkpoint) if bundle else Model(options.checkpoint)
    chosen = options.only or [part for part in PARTS if not bundle or part not in OF_A_CHECKPOINT]
    if "photos" in chosen and options.photos is None:
        parser.error("photographs are a part of it: --photos, or --only other parts")
    ways: dict[str, Callable[[], Any]] = {
        "test": lambda: scenes(model, data / "scenes/test", limit),
        "unseen": lambda: scenes(model, data / "scenes/unseen", limit),
        "photos": lambda: photos(model, options.photos, options.listed),
        "clips": lambda: clips(model, rows_of(data / "clips/test")[:limit]),
        "questions": lambda: answers(model, [r for r in rows_of(data / "scenes/test") if "question" in r][:limit]),
        "easy_vqa": lambda: answers(model, rows_of(data / "easy-vqa/test")[:limit]),
        "spoken": lambda: spoken(model, rows_of(data / "easy-vqa/spoken")[:limit]),
        "recommendation": lambda: recommendation(model, rows_of(data / "catalogue/unseen")),
    }
    figures: dict[str, Any] = {"scenes_sha256": ScenesConfig().sha256}
    for part in chosen:
        figures[part] = ways[part]()
        print(part, json.dumps(figures[part]), flush=True)
    options.output.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

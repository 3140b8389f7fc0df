"""Frambicus: a row teaches what it has, a question its answer, a picture its caption and boxes, a clip its story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from edgemm.errors import InputError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.frambicus.building import spoken_name
from edgemm.export.frambicus.modeling import IGNORED
from edgemm.export.frambicus.scenes.words import article, plural
from edgemm.export.loading import quieten
from edgemm.export.precision.calibration import RATE_HZ
from edgemm.export.train.data import Groups, Sample, Samples, Splits
from edgemm.export.train.freezing import set_dropout
from edgemm.export.train.objectives import guidance
from edgemm.export.train.objectives.base import Batch, Objective
from edgemm.export.train.objectives.grids import SHOWN, Grids
from edgemm.export.train.options import TrainOptions
from edgemm.tasks.answer_metrics import exact_match
from edgemm.tasks.boxes import Box, mean_average_precision
from edgemm.tasks.liking import FIRST as _FIRST
from edgemm.tasks.scoring import measured

_TOLD = 0.5  # of the pictures
_GUIDANCE = 0.3  # of what heads are shown, beside a text's own loss
_OTHER_TAGS = 2
_MIRRORED = 0.5  # of the batches in which boxes are all that is learned
_NAMES = 16  # other names that a picture to be named gets in one step
_OTHERS = 2048  # tokens that no text has, which compete with those that some have at each step
_ROUND = 8  # a CPU compiles the kernels of a shape when it meets it: of shapes that hardly repeat, a third of a step
_WRITTEN = ("answer", "caption", "describe")
_STEERS = {
    "answer": "vqa_accuracy",
    "caption": "cider",
    "describe": "describe_exact_match",
    "detect": "map50",
    "recommend": "recall@10",
}


class Frambicus(Objective):
    """All tasks of one model at once; each counts by how many rows of a batch teach it."""

    fields = ("text", "answer", "objects", "task")
    logits = False

    def __init__(self, checkpoint: Checkpoint, model: Any, processor: Any, options: TrainOptions) -> None:
        self.checkpoint, self.options, self.model, self.processor = checkpoint, options, model, processor
        model.set_attn_implementation("eager")  # torch's flash attention is 60 % of a step on a CPU: queries are few
        self._grids = Grids(model, processor, options)
        self._plurals: torch.Tensor | None = None
        self._known: torch.Tensor | None = None
        self._classes = {str(name): int(i) for i, name in model.config.vision_config.id2label.items()}
        self._ids = {str(name): int(i) for i, name in model.config.detector_config.id2label.items()}
        model.config.label_smoothing = options.label_smoothing
        if options.dropout is not None:
            set_dropout(model, options.dropout)

    @classmethod
    def load(cls, checkpoint: Checkpoint, splits: Splits, options: TrainOptions) -> Objective:
        from edgemm.export.frambicus import FrambicusForQuestionAnswering, FrambicusProcessor

        quieten()
        model = FrambicusForQuestionAnswering.from_pretrained(checkpoint.path)
        made = cls(checkpoint, model, FrambicusProcessor.from_pretrained(checkpoint.path), options)
        made.metric = _STEERS[_first_task(splits.train)]
        made._words_of(splits.train)
        return made

    def _words_of(self, rows: Samples) -> None:
        """Note every token that can be asked for: of the texts of `rows`, and of the names."""
        config = self.model.config
        texts = {spoken_name(str(name)) for name in (*self._classes, *self._ids)}
        for field in {"text", "answer"} & set(rows.fields):
            texts.update(str(text) for text in rows.column(field) if text)
        ids = self.processor.tokenizer([*texts, *(article(text) for text in texts)], add_special_tokens=False)
        known = torch.zeros(config.text_config.vocab_size, dtype=torch.bool)
        known[[config.eos_token_id, *{i for own in ids["input_ids"] for i in own}]] = True
        self._known = known

    def _tokens(self, device: torch.device) -> torch.Tensor | None:
        """The tokens that compete in one step, sorted: all that can be asked for, and some others."""
        if self._known is None or not self.model.training:
            return None
        others = torch.rand(len(self._known)) < _OTHERS / len(self._known)
        return (self._known | others).nonzero()[:, 0].to(device)

    def prepare(self, place: Path) -> None:
        """Keep the towers' grids there."""
        self._grids.keep_in(place)

    def units(self, rows: Samples) -> Sequence[Any]:
        """All rows of a picture or a clip: it is looked at once for all of them."""
        return Groups(rows, SHOWN)

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        lessons = [(task, sample) for sample in samples for task in tasks_of(sample)]
        if not lessons:
            raise InputError(f"{samples[0].where} teaches nothing", hint="give text, objects, or question and answer")
        parts = []
        for frames in (False, True):
            own = [(task, s) for task, s in lessons if s.has("video") == frames]
            if own:
                parts.append(self._part(own, training=training))
        return {"parts": parts}

    def _part(self, lessons: Sequence[tuple[str, Sample]], *, training: bool) -> Batch:
        """Pictures, or clips, each once, and what is asked of them: `rows` says of which."""
        first: dict[str, Sample] = {}
        for _, sample in lessons:
            first.setdefault(_shown_by(sample), sample)
        places = {name: i for i, name in enumerate(first)}
        asked = []
        for task in dict.fromkeys(task for task, _ in lessons):
            own = [sample for name, sample in lessons if name == task]
            rows = torch.tensor([places[_shown_by(s)] for s in own])
            if task == "name":
                asked.append({"task": task, "count": len(own) * _NAMES, "rows": rows.repeat_interleave(_NAMES)})
                continue
            made = self._boxes(own) if task == "detect" else self._written(task, own)
            lesson = {"task": task, "count": len(own), "rows": rows, "inputs": made}
            rounded = task in _WRITTEN and not any(s.has("audio") for s in own)
            asked.append(self._rounded(lesson) if rounded else lesson)
        return {"senses": self._grids.of(list(first.values()), training=training), "asked": asked}

    def _rounded(self, asked: Batch) -> Batch:
        """With padding, so that numbers of rows and of tokens repeat from batch to batch."""
        ids = asked["inputs"]["input_ids"]
        below, right = (-size % _ROUND for size in ids.shape)
        fill = {"input_ids": self.processor.tokenizer.pad_token_id, "labels": IGNORED}
        inputs = {
            name: torch.nn.functional.pad(values, (0, right, 0, below), value=fill.get(name, 0))
            for name, values in asked["inputs"].items()
        }
        return asked | {"rows": torch.nn.functional.pad(asked["rows"], (0, below)), "inputs": inputs}

    def weight_of(self, part: Batch) -> int:
        return sum(asked["count"] for asked in part["asked"])

    def loss_of(self, model: Any, part: Batch) -> torch.Tensor:
        if {asked["task"] for asked in part["asked"]} == {"detect"}:
            return self._boxes_loss(model, part)
        sight = model.see(**part["senses"], told=self._told(part) if model.training else None)
        memory = model.remember(sight, None)
        losses = []
        for asked in part["asked"]:
            rows, inputs = asked["rows"], asked.get("inputs", {})
            if asked["task"] == "name":
                loss = self._names(model, sight, rows)
            elif asked["task"] == "detect":
                loss = model.detector.loss(sight.found.of(rows), inputs["labels"])[0]
            elif asked["task"] == "recommend":
                loss = self._pairs(model, sight.of(rows), inputs)
            else:
                loss = self._words(model, asked["task"], memory, sight, rows, inputs)
            losses.append(loss * asked["count"])
        total: torch.Tensor = torch.stack(losses).sum() / self.weight_of(part)
        return total

    def _told(self, part: Batch) -> dict[int, Any]:
        """What is in about half of the pictures whose objects are known: at first what is found is no help."""
        known = next((a for a in part["asked"] if a["task"] == "detect"), None)
        if known is None or part["senses"]["frame_mask"].shape[1] > 1:
            return {}
        pairs = zip(known["rows"].tolist(), known["inputs"]["labels"], strict=True)
        chosen = torch.rand(len(known["rows"])) < _TOLD
        return {row: target for (row, target), is_told in zip(pairs, chosen, strict=True) if is_told}

    def _boxes_loss(self, model: Any, part: Batch) -> torch.Tensor:
        """The detector alone, where nothing is to be written."""
        (asked,) = part["asked"]
        grids, targets = model.newest(part["senses"]["grids"], part["senses"]["frame_mask"]), asked["inputs"]["labels"]
        if model.training and torch.rand(()) < _MIRRORED:
            grids, targets = [grid.flip(-1) for grid in grids], [_mirrored(target) for target in targets]
        loss: torch.Tensor = model.detector.loss(model.detector(grids).of(asked["rows"]), targets)[0]
        return loss

    def _pairs(self, model: Any, sight: Any, inputs: Batch) -> torch.Tensor:
        """The loss of telling which text belongs to which picture."""
        from edgemm.export.frambicus.embedding import contrastive_loss

        image = model.embedder.of_image(*sight.seen)
        text = model.embed_texts(inputs["input_ids"], inputs["attention_mask"])
        loss: torch.Tensor = contrastive_loss(model.embedder.logits(image, text))
        return loss

    def _names(self, model: Any, sight: Any, rows: torch.Tensor) -> torch.Tensor:
        """The loss of naming pictures by the tower's best class, whatever its name, and of telling apart which names
        are whose: all names are dealt out anew.

        Photographs of a thousand classes cannot be had freely, yet the decoder must learn to say what the tower sees,
        of any of them, and not what it has seen go with what.
        """
        device = rows.device
        classes = len(self._classes)
        dealt = torch.rand(len(rows), classes).argsort(1).to(device)
        probabilities, shown = sight.probabilities[rows], sight.frame_mask[rows]
        where = model.connector.tokens.where(*sight.grids[-1].shape[-2:], device)
        concepts, mask, _ = model.concepts(probabilities, shown, where, model.table, dealt)
        ranked = dealt.gather(1, model.concepts.best(probabilities, shown)[0])
        labels = model.config.vision_config.id2label
        texts = [article(spoken_name(str(labels[i]))) for i in ranked[:, 0].tolist()]
        written = self.processor.write("caption", [""] * len(texts), texts)
        inputs = self._rounded({"rows": rows, "inputs": written})["inputs"]
        named = replace(sight.of(rows), concepts=concepts, concept_mask=mask)
        memory = model.remember(named, None)
        inputs = {name: values.to(device) for name, values in inputs.items()}
        states = model.speak(inputs["input_ids"], memory, inputs["attention_mask"])
        loss: torch.Tensor = model.loss_of(states[:, :-1], inputs["labels"][:, 1:], self._tokens(rows.device))
        # Tags: the likeliest class or the one after it, among others that say nothing.
        picks = torch.rand(len(rows), 2, device=device).argsort(1)[:, :1]
        others = torch.randint(0, classes, (len(rows), _OTHER_TAGS), device=device)
        tags = torch.cat((ranked[:, :2].gather(1, picks), others), dim=1)
        tags = tags.gather(1, torch.rand(tags.shape, device=device).argsort(1))
        listed = [", ".join(spoken_name(str(labels[i])) for i in own) for own in tags.tolist()]
        tagged = self.processor.write("recommend", listed)
        return loss + self._pairs(model, named, {n: v.to(device) for n, v in tagged.items()})

    def _words(self, model: Any, task: str, memory: Any, sight: Any, rows: torch.Tensor, inputs: Batch) -> torch.Tensor:
        """The loss of what should be written over the memory of some pictures, with sound where there is any."""
        shared: torch.Tensor | None = rows
        if "input_values" in inputs:
            heard = model.hear(inputs["input_values"], inputs["input_values_mask"])
            memory, shared = model.remember(sight.of(rows), heard), None
        watch = model.training and shared is not None and task in ("answer", "caption")
        with guidance.Watch(model.text if watch else None) as watched:
            states = model.speak(inputs["input_ids"], memory, inputs["attention_mask"], rows=shared)
        loss: torch.Tensor = model.loss_of(states[:, :-1], inputs["labels"][:, 1:], self._tokens(rows.device))
        if watch:
            guide = self._questions if task == "answer" else self._captions
            loss = loss + _GUIDANCE * guide(model, watched, sight.of(rows), inputs)
        return loss

    def _questions(self, model: Any, watched: guidance.Watch, sight: Any, inputs: Batch) -> torch.Tensor:
        """How far the heads look past the words of questions, and past what these are about."""
        asked = (inputs["attention_mask"] != 0) & (inputs["labels"] == IGNORED)
        spelled = self._spelled(model, sight)
        standing = (inputs["input_ids"][:, :, None, None] == spelled[:, None]).any(-1)
        first = sight.visual.shape[1]
        found = standing[..., first : first + sight.finds.shape[1]].any(-1)
        return guidance.words(watched.words, standing, asked) + guidance.things(watched.things, found, asked)

    def _captions(self, model: Any, watched: guidance.Watch, sight: Any, inputs: Batch) -> torch.Tensor:
        """How far the head looks past what is named next."""
        names = torch.stack((model.finds.speller.names, self._plural_names(model)), dim=1)
        about = []
        for own, labels in zip(inputs["labels"].tolist(), sight.labels.tolist(), strict=True):
            known = [(n, [t for t in tokens if t >= 0]) for n in {*labels} - {-1} for tokens in names[n].tolist()]
            about.append(guidance.named_next(own, known))
        wanted = torch.tensor(about, device=names.device)
        each = sight.labels.repeat_interleave(names.shape[-1], 1).masked_fill(sight.find_mask == 0, -1)
        there = (wanted[:, :, None] == each[:, None]) & (wanted[:, :, None] >= 0)
        after = sight.seen[1].shape[1] + 2 - sight.visual.shape[1] - each.shape[1]
        there = nn.functional.pad(there, (sight.visual.shape[1], after))
        return guidance.phrases(watched.phrases, there, there.any(-1))

    def _spelled(self, model: Any, sight: Any) -> torch.Tensor:
        """The tokens that each place of a memory without sound stands for, [B, T, 2]: of one thing, and of several."""
        names = self._plural_names(model)
        several = names[sight.labels.clamp(min=0)].masked_fill(sight.labels[..., None] < 0, IGNORED).flatten(1)
        several = nn.functional.pad(several, (0, sight.spelled.shape[1] - several.shape[1]), value=IGNORED)
        several = several.masked_fill(sight.spelled < 0, IGNORED)
        both = torch.stack((sight.spelled, several), dim=-1)
        return nn.functional.pad(both, (0, 0, sight.visual.shape[1], 2), value=IGNORED)

    def _plural_names(self, model: Any) -> torch.Tensor:
        """The first tokens of what several of each label are called, [labels, J]."""
        names = model.finds.speller.names
        if self._plurals is None:
            labels = model.config.detector_config.id2label
            words = [plural(spoken_name(str(labels[i]))) for i in range(len(labels))]
            ids = [self.processor.tokenizer.encode(word, add_special_tokens=False) for word in words]
            rows = [torch.tensor((own + [IGNORED] * names.shape[1])[: names.shape[1]]) for own in ids]
            self._plurals = torch.stack(rows).to(names.device)
        return self._plurals

    def _written(self, task: str, samples: Sequence[Sample]) -> Batch:
        """What the decoder is called with: prompts and what it should say, and sounds where there are any."""
        if task == "recommend":
            pairs: Batch = self.processor.write(task, [s.texts()[0] for s in samples])
            return pairs
        targets = [self._target(task, s)[0] for s in samples]
        made: Batch = self.processor.write(task, [self._asked(s) for s in samples], targets)
        return made | self._heard(samples)

    def _boxes(self, samples: Sequence[Sample]) -> Batch:
        """What the detector should find. Boxes are shares of the picture, which is stretched, never cut."""
        targets = []
        for sample in samples:
            height, width = _size_of(sample)
            found = self._target("detect", sample)
            corners = np.array([b.box_px for b in found], np.float32).reshape(-1, 4) / [width, height, width, height]
            centred = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
            ids = [self._ids[b.label] for b in found]
            targets.append({
                "class_labels": torch.tensor(ids, dtype=torch.long),
                "boxes": torch.from_numpy(centred.astype(np.float32)),
            })  # fmt: skip
        return {"labels": targets}

    def _asked(self, sample: Sample) -> str:
        """The question, unless it is spoken."""
        return "" if sample.has("audio") else str(sample.values.get("question") or "")

    def _target(self, task: str, sample: Sample) -> Any:
        if task == "answer":
            return sample.texts("answer")
        if task != "detect":
            return sample.texts()
        objects = sample.get("objects")
        strange = next((n for n in objects["category"] if str(n) not in self._ids), None)
        if strange is not None:
            raise InputError(f"{sample.where}: the detector has no label {strange!r}", hint="build it with that label")
        pairs = zip(objects["category"], objects["bbox"], strict=True)
        return [Box(str(name), (x, y, x + w, y + h)) for name, (x, y, w, h) in pairs]

    def _senses(self, samples: Sequence[Sample]) -> Batch:
        """What is seen and heard of all rows."""
        return self._grids.of(samples, training=False) | self._heard(samples)

    def _heard(self, samples: Sequence[Sample]) -> Batch:
        if not any(s.has("audio") for s in samples):
            return {}
        sounds = [s.sound(RATE_HZ) if s.has("audio") else None for s in samples]
        heard: Batch = self.processor.listen(sounds, RATE_HZ)
        return heard

    def say(self, model: Any, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """By task, what is said to each row: texts, and boxes."""
        said: list[dict[str, Any]] = [{} for _ in samples]
        for task in _STEERS:
            rows = [i for i, s in enumerate(samples) if task in tasks_of(s)]
            if rows:
                own = [samples[i] for i in rows]
                for i, value in zip(rows, self._said(model, task, own), strict=True):
                    said[i][task] = value
        return said

    def _said(self, model: Any, task: str, samples: Sequence[Sample]) -> Sequence[Any]:
        if task == "detect":
            return self._found(model, samples)
        if task == "recommend":
            return self._embedded(model, samples)
        return self._texts(model, task, samples)

    def _embedded(self, model: Any, samples: Sequence[Sample]) -> list[Any]:
        """The vectors of each row's picture and of its text, [2, E]."""
        asked = self.processor.write("recommend", [s.texts()[0] for s in samples])
        image = model.embedder.of_image(*model.see(**self._grids.of(samples, training=False)).seen)
        text = model.embed_texts(asked["input_ids"], asked["attention_mask"])
        return list(torch.stack((image, text), dim=1).cpu().numpy())

    def _texts(self, model: Any, task: str, samples: Sequence[Sample]) -> list[str]:
        asked = self.processor.write(task, [self._asked(s) for s in samples])
        senses = self._senses(samples)
        ids = model.generate(**asked, **senses, max_new_tokens=self.options.max_new_tokens, do_sample=False)
        texts: list[str] = self.processor.batch_decode(ids[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _found(self, model: Any, samples: Sequence[Sample]) -> list[list[Box]]:
        from edgemm.export.frambicus import FrambicusForDetection

        out: Any = FrambicusForDetection.forward(model, **self._senses(samples))
        names = {i: name for name, i in self._ids.items()}
        best = out.logits.softmax(-1)[..., :-1].max(-1)
        found = []
        for sample, scores, classes, boxes in zip(samples, best.values, best.indices, out.pred_boxes, strict=True):
            height, width = _size_of(sample)
            corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
            corners = corners * torch.tensor([width, height, width, height])
            rows = zip(classes.tolist(), corners.tolist(), scores.tolist(), strict=True)
            found.append([Box(names[i], tuple(box), score) for i, box, score in rows])
        return found

    def expected(self, sample: Sample) -> dict[str, Any]:
        return {task: self._target(task, sample) for task in tasks_of(sample) if task in _STEERS}

    def judge(self, expected: Sequence[dict[str, Any]], said: Sequence[dict[str, Any]]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for task in _STEERS:
            pairs = [(e[task], s[task]) for e, s in zip(expected, said, strict=True) if task in e]
            if pairs:
                metrics |= _judged(task, [e for e, _ in pairs], [s for _, s in pairs])
        return metrics

    def show(self, value: Any) -> str:
        return "; ".join(f"{task}: {_shown(task, own)}" for task, own in value.items())

    def save(self, model: Any, directory: Path) -> None:
        model.save_pretrained(directory)
        self.processor.save_pretrained(directory)


def _shown_by(sample: Sample) -> str:
    """What names the picture or clip of a row; a row whose picture has no name is alone."""
    found = next((sample.values[n] for n in SHOWN if isinstance(sample.values.get(n), str)), sample.where)
    return str(found)


def _mirrored(target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The boxes of a picture's mirror image."""
    x, *others = target["boxes"].unbind(-1)
    return {**target, "boxes": torch.stack((1 - x, *others), dim=-1)}


def _size_of(sample: Sample) -> tuple[int, int]:
    """Height and width of a row's picture, in pixels, without decoding it where it is a file."""
    name = sample.values.get("image") or sample.values.get("file_name")
    if isinstance(name, str):
        with Image.open(sample.root / name) as picture:
            return picture.height, picture.width
    height, width = sample.picture().shape[:2]
    return height, width


def _first_task(rows: Samples) -> str:
    """What a run is steered by, of all that its rows teach."""
    has = set(rows.fields)
    if "answer" in has:
        return "answer"
    if "text" not in has:
        return "detect" if "objects" in has else "caption"
    if "task" in has and all(task == "recommend" for task in rows.column("task")):
        return "recommend"
    return "describe" if "video" in has else "caption"


def tasks_of(sample: Sample) -> tuple[str, ...]:
    """What a row teaches."""
    found = []
    if sample.values.get("task") == "name":
        found.append("name")
    elif sample.has("question", "answer"):
        found.append("answer")
    elif sample.values.get("task") == "recommend" and sample.has("text"):
        found.append("recommend")
    elif sample.has("text"):
        found.append("describe" if sample.has("video") else "caption")
    if sample.has("objects"):
        found.append("detect")
    return tuple(found)


def _judged(task: str, expected: list[Any], said: list[Any]) -> dict[str, float]:
    if task == "detect":
        return dict(mean_average_precision(expected, said))
    if task == "recommend":
        image, text = np.stack(said, axis=1)
        ranked = np.argsort(-(text @ image.T), axis=1)[:, :_FIRST]
        return {f"recall@{_FIRST}": 100 * float((ranked == np.arange(len(text))[:, None]).any(1).mean())}
    if task == "describe":
        return {"describe_exact_match": exact_match(expected, said).total}
    return {name: scores.total for name, scores in measured(task, expected, said).items()}


def _shown(task: str, value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"its picture and its text are {float(value[0] @ value[1]):.2f} alike"
    if task != "detect":
        return value if isinstance(value, str) else " / ".join(value)
    return ", ".join(f"{b.label} {b.score:.2f}" for b in sorted(value, key=lambda b: -b.score)[:3])

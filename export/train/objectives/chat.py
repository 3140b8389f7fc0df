"""Answers and captions by chat models that read pictures or sounds: the answer is learned, the prompt is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgemm.errors import InputError
from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import IGNORED, Batch, Objective, to

CAPTION = "Describe the picture."


class Chat(Objective):
    """A decoder-only model with a chat template.

    A row with `question` and `answer` is asked that; one with `text` is asked to describe what is there. A `video` is
    shown as eight pictures.
    """

    fields = ("text", "answer")
    metric = "exact_match"
    next_token = True
    _FRAMES = 8

    def _media(self, sample: Sample, *, training: bool) -> tuple[list[Any], list[Any]]:
        """Pictures and sounds of a row."""
        pictures: list[Any] = []
        if sample.has("image") or sample.has("file_name"):
            pictures = [sample.picture()]
        elif sample.has("video"):
            pictures = list(sample.frames(self._FRAMES)[0])
        if training and self.augment:
            pictures = [self.augment.picture(p) for p in pictures]
        sounds = [sample.sound(self.processor.feature_extractor.sampling_rate)] if sample.has("audio") else []
        if not pictures and not sounds:
            raise InputError(f"{sample.where} has no picture, video or sound", hint="give one of image, video, audio")
        return pictures, sounds

    def _prompt(self, sample: Sample, pictures: int, sounds: int) -> str:
        return self._rendered([self._asked(sample, pictures, sounds)], add_generation_prompt=True)

    def _asked(self, sample: Sample, pictures: int, sounds: int) -> dict[str, Any]:
        kinds = ["image"] * pictures + ["audio"] * sounds
        asked = str(sample.values.get("question") or CAPTION)
        return {"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": asked}]}

    def _answered(self, sample: Sample, pictures: int, sounds: int) -> tuple[str, str]:
        """The prompt, and what the template makes of the answer behind it, the end of the turn included."""
        prompt = self._prompt(sample, pictures, sounds)
        answer = self.expected(sample)[0]
        turns = [self._asked(sample, pictures, sounds)]
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        whole = self._rendered(turns).rstrip("\n")
        if whole.startswith(prompt):
            return prompt, whole[len(prompt) :]
        return prompt, answer + (self.processor.tokenizer.eos_token or "")

    def _rendered(self, turns: list[dict[str, Any]], **more: Any) -> str:
        made: str = self.processor.apply_chat_template(turns, tokenize=False, **more)
        return made

    def _read(self, prompts: list[str], media: Sequence[tuple[list[Any], list[Any]]]) -> Batch:
        """What the processor makes of prompts and what is shown with them, padded on the right."""
        more: Batch = {}
        if any(pictures for pictures, _ in media):
            more["images"] = [pictures for pictures, _ in media]
        if any(sounds for _, sounds in media):
            more["audio"] = [sound for _, sounds in media for sound in sounds]
        return dict(self.processor(text=prompts, padding=True, return_tensors="pt", **more))

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        self.processor.tokenizer.padding_side = "right"
        media = [self._media(s, training=training) for s in samples]
        pairs = [self._answered(s, len(p), len(a)) for s, (p, a) in zip(samples, media, strict=True)]
        whole = self._read([prompt + answer for prompt, answer in pairs], media)
        labels = whole["input_ids"].masked_fill(whole["attention_mask"] == 0, IGNORED)
        for row, (_, answer) in zip(labels, pairs, strict=True):
            said = len(self.processor.tokenizer(answer, add_special_tokens=False).input_ids)
            length = int((row != IGNORED).sum())
            row[: length - said] = IGNORED
        return {**whole, "labels": labels}

    def say(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        self.processor.tokenizer.padding_side = "left"
        media = [self._media(s, training=False) for s in samples]
        prompts = [self._prompt(s, len(p), len(a)) for s, (p, a) in zip(samples, media, strict=True)]
        feeds = to(model.device, self._read(prompts, media))
        ids = model.generate(**feeds, max_new_tokens=self.options.max_new_tokens, do_sample=False)
        new = ids[:, feeds["input_ids"].shape[1] :]
        said: list[str] = self.processor.batch_decode(new, skip_special_tokens=True)
        return [s.strip() for s in said]

    def expected(self, sample: Sample) -> list[str]:
        return sample.texts("answer" if sample.has("answer") else "text")

    def judge(self, expected: Sequence[list[str]], said: Sequence[str]) -> dict[str, float]:
        equal = [any(plain(s) == plain(e) for e in wanted) for wanted, s in zip(expected, said, strict=True)]
        return {"exact_match": 100.0 * sum(equal) / max(1, len(equal))}

    def show(self, value: Any) -> str:
        return value if isinstance(value, str) else " / ".join(value)


def plain(text: str) -> str:
    return " ".join(text.casefold().strip(" .!?").split())

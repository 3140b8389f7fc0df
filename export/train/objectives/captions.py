"""Texts about pictures by encoder–decoders without a chat template: captions, answers, lines of print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import IGNORED, Batch, Objective, to
from edgemm.export.train.objectives.chat import plain

_CAPTION_PROMPTS = {"florence2": "<CAPTION>", "paligemma": "caption en"}


class PictureToText(Objective):
    """VisionEncoderDecoder and BLIP: the decoder is taught the text and its end, from the picture alone."""

    fields = ("text",)
    metric = "exact_match"

    @property
    def next_token(self) -> bool:  # type: ignore[override]
        """BLIP is fed the labels themselves."""
        return self._is("blip")

    def _is(self, kind: str) -> bool:
        return bool(self.model.config.model_type == kind)

    def _pictures(self, samples: Sequence[Sample], *, training: bool) -> list[Any]:
        pictures = [s.picture() for s in samples]
        return [self.augment.picture(p) for p in pictures] if training and self.augment else pictures

    def _feeds(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        images = getattr(self.processor, "image_processor", self.processor)
        return {"pixel_values": images(self._pictures(samples, training=training), return_tensors="pt")["pixel_values"]}

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        tokenizer = self.processor.tokenizer
        end = tokenizer.sep_token_id if self._is("blip") else tokenizer.eos_token_id or tokenizer.sep_token_id
        made = tokenizer([s.texts()[0] for s in samples], add_special_tokens=self._is("blip")).input_ids
        ids = [torch.tensor(row if row and row[-1] == end else [*row, end]) for row in made]
        labels = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=IGNORED)
        feeds = {**self._feeds(samples, training=training), "labels": labels}
        if self._is("blip"):
            feeds["input_ids"] = labels.masked_fill(labels == IGNORED, tokenizer.pad_token_id)
            feeds["attention_mask"] = (labels != IGNORED).long()
        return feeds

    def say(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        feeds = to(model.device, self._feeds(samples, training=False))
        ids = model.generate(**feeds, max_new_tokens=self.options.max_new_tokens, do_sample=False)
        said: list[str] = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [s.strip() for s in said]

    def expected(self, sample: Sample) -> list[str]:
        return sample.texts("answer" if sample.has("answer") else "text")

    def judge(self, expected: Sequence[list[str]], said: Sequence[str]) -> dict[str, float]:
        equal = [any(plain(s) == plain(e) for e in wanted) for wanted, s in zip(expected, said, strict=True)]
        return {"exact_match": 100.0 * sum(equal) / max(1, len(equal))}

    def show(self, value: Any) -> str:
        return value if isinstance(value, str) else " / ".join(value)


class PromptedPicture(PictureToText):
    """Florence-2 and PaliGemma: a picture and a task or a question, then the text."""

    @property
    def next_token(self) -> bool:  # type: ignore[override]
        """PaliGemma is one decoder; Florence-2 shifts its labels itself."""
        return self._is("paligemma")

    def _prompts(self, samples: Sequence[Sample]) -> list[str]:
        """The picture stands first where the processor wants to be told so."""
        usual = _CAPTION_PROMPTS[self.model.config.model_type]
        first = "<image>" if self._is("paligemma") else ""
        return [first + str(s.values.get("question") or usual) for s in samples]

    def _feeds(self, samples: Sequence[Sample], *, training: bool, **more: Any) -> Batch:
        images = self._pictures(samples, training=training)
        made = self.processor(
            text=self._prompts(samples), images=images, padding=True, return_tensors="pt", **more
        )
        return dict(made)

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        texts = [self.expected(s)[0] for s in samples]
        if self._is("paligemma"):
            return self._feeds(samples, training=training, suffix=texts)
        made = self.processor.tokenizer(texts, padding=True, return_tensors="pt")
        labels = made.input_ids.masked_fill(made.attention_mask == 0, IGNORED)
        return {**self._feeds(samples, training=training), "labels": labels}

    def say(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        if not self._is("paligemma"):
            return super().say(model, samples)
        self.processor.tokenizer.padding_side = "left"
        feeds = to(model.device, self._feeds(samples, training=False))
        ids = model.generate(**feeds, max_new_tokens=self.options.max_new_tokens, do_sample=False)
        new = ids[:, feeds["input_ids"].shape[1] :]
        said: list[str] = self.processor.batch_decode(new, skip_special_tokens=True)
        return [s.strip() for s in said]

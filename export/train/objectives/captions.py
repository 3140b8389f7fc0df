"""Texts about pictures by encoder–decoders: VisionEncoderDecoder, BLIP and Florence-2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import Batch, to, together
from edgemm.export.train.objectives.chat import Texts

_ALIGNED = ("labels", "input_ids", "attention_mask", "decoder_input_ids")
_TASK = "<CAPTION>"


class PictureToText(Texts):
    """VisionEncoderDecoder: the decoder is taught the text and its end, from the picture alone."""

    fields: ClassVar[tuple[str, ...]] = ("text",)

    def labels(self, text: str) -> list[int]:
        """The text's tokens and the end."""
        tokens = self.plan.tokens
        assert tokens is not None
        return [*self.tokenizer.encode(text, specials=False), tokens.eos[0]]

    def asked(self, sample: Sample, *, training: bool) -> Batch:
        """What the model is called with, the labels apart."""
        return dict(self.feeds(sample, training=training))

    def lesson(self, sample: Sample, *, training: bool) -> Batch:
        """One row with its labels."""
        labels = torch.tensor([self.labels(self.expected(sample)[0])])
        return {**self.asked(sample, training=training), "labels": labels}

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        return {"parts": together([self.lesson(s, training=training) for s in samples], _ALIGNED)}

    def say(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        said: list[str] = []
        for part in together([self.asked(sample, training=False) for sample in samples]):
            ids = model.generate(**to(model.device, part), max_new_tokens=self.options.max_new_tokens, do_sample=False)
            said += [self.tokenizer.decode(own).strip() for own in ids.tolist()]
        return said


class Blip(PictureToText):
    """BLIP: captions are read and predicted by one decoder; questions are encoded with the picture, then answered."""

    fields: ClassVar[tuple[str, ...]] = ("text", "answer")

    @property
    def _answers(self) -> bool:
        return "answer" in self.plan.tasks

    def labels(self, text: str) -> list[int]:
        tokens = self.plan.tokens
        assert tokens is not None
        first = tokens.decoder_start if tokens.decoder_start is not None else tokens.bos
        return [*([first] if first is not None else []), *super().labels(text)]

    def asked(self, sample: Sample, *, training: bool) -> Batch:
        made = dict(self.feeds(sample, training=training))
        if self._answers:
            ids = torch.tensor([self.tokenizer.encode(str(sample.get("question")))])
            made |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return made

    def lesson(self, sample: Sample, *, training: bool) -> Batch:
        made = super().lesson(sample, training=training)
        if not self._answers:
            made |= {"input_ids": made["labels"], "attention_mask": torch.ones_like(made["labels"])}
        return made


class Florence(PictureToText):
    """Florence-2: a picture and the words that its task stands for, then the text."""

    fields: ClassVar[tuple[str, ...]] = ("text", "answer")

    def asked(self, sample: Sample, *, training: bool) -> Batch:
        from edgemm.processing.regions import task_prompt

        made, tokens = dict(self.feeds(sample, training=training)), self.plan.tokens
        assert tokens is not None
        with torch.no_grad():
            places = self.model.get_image_features(made["pixel_values"].to(self.model.device)).pooler_output.shape[1]
        words = str(sample.values.get("question") or task_prompt(_TASK))
        prompt = self.tokenizer.encode(words, specials=False)
        ids = torch.tensor([[tokens.image] * places + [tokens.bos, *prompt, tokens.eos[0]]])
        return {**made, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

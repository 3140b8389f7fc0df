"""Speech recognition: encoder–decoders (Whisper, Moonshine) by cross entropy, CTC encoders by theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import IGNORED, Batch, Objective, to
from edgemm.tasks.metrics import wer


class _Speech(Objective):
    fields = ("audio", "text")
    metric, greater = "wer", False

    def _sounds(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        """Padded features of the rows' sounds, with their mask where the model takes one."""
        extractor = getattr(self.processor, "feature_extractor", self.processor)
        sounds = [s.sound(extractor.sampling_rate) for s in samples]
        if training and self.augment:
            sounds = [self.augment.sound(s) for s in sounds]
        made = extractor(
            sounds, sampling_rate=extractor.sampling_rate, return_tensors="pt", **_PADDING.get(self._kind, {"padding": True})
        )
        return dict(made)

    @property
    def _kind(self) -> str:
        return str(self.model.config.model_type)

    def expected(self, sample: Sample) -> str:
        return sample.texts()[0]

    def judge(self, expected: Sequence[str], said: Sequence[str]) -> dict[str, float]:
        return {"wer": wer(expected, said)}


# Whisper always hears 30 s.
_PADDING: dict[str, dict[str, Any]] = {"whisper": {"return_attention_mask": True}}


class SpeechToText(_Speech):
    """An encoder–decoder that is taught the tokens of what was said, and the end of them."""

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        labels = [torch.tensor(self._tokens(s.texts()[0])) for s in samples]
        padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        return {**self._sounds(samples, training=training), "labels": padded}

    def _tokens(self, text: str) -> list[int]:
        """What the decoder says behind its start token."""
        tokenizer = self.processor.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        eos = self.model.generation_config.eos_token_id
        prefix = list(tokenizer.prefix_tokens)[1:] if self._kind == "whisper" else []
        return [*prefix, *ids, eos[0] if isinstance(eos, list) else eos]

    def say(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        feeds = to(model.device, self._sounds(samples, training=False))
        ids = model.generate(**feeds, max_new_tokens=self.options.max_new_tokens, do_sample=False)
        said: list[str] = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [s.strip() for s in said]


class SpeechToLetters(_Speech):
    """An encoder with a CTC head (Graves et al., 2006)."""

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        tokenizer = self.processor.tokenizer
        labels = [torch.tensor(tokenizer(self._written(s.texts()[0])).input_ids) for s in samples]
        padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        return {**self._sounds(samples, training=training), "labels": padded}

    def _written(self, text: str) -> str:
        """In capitals where the vocabulary has only those."""
        letters = [t for t in self.processor.tokenizer.get_vocab() if len(t) == 1 and t.isalpha()]
        return text.upper() if letters and all(t.isupper() for t in letters) else text

    def say(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        logits = model(**to(model.device, self._sounds(samples, training=False))).logits
        said: list[str] = self.processor.batch_decode(logits.argmax(-1))
        return said

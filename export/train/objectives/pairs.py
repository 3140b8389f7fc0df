"""Two things into one space, what belongs together near: pictures and texts, sounds and texts, users and items.

The loss is the checkpoint's own where it is a dual encoder (CLIP's softmax, SigLIP's sigmoid), else InfoNCE over the
batch (van den Oord et al., arXiv 1807.03748).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgemm.errors import InputError
from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import Batch, Objective, to

_TEMPERATURE = 0.05


class DualEncoder(Objective):
    """CLIP, SigLIP, CLAP: rows of a picture or a sound, and its `text`."""

    fields = ("text",)
    metric = "recall@1"

    def _feeds(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        texts = [s.texts()[0] for s in samples]
        how: Batch = {"text": texts, "padding": True, "truncation": True, "return_tensors": "pt"}
        if self.model.config.model_type.startswith("siglip"):
            how["padding"] = "max_length"
        if hasattr(self.processor, "image_processor"):
            pictures = [s.picture() for s in samples]
            how["images"] = [self.augment.picture(p) for p in pictures] if training and self.augment else pictures
        else:
            rate_hz = self.processor.feature_extractor.sampling_rate
            how |= {"audio": [s.sound(rate_hz) for s in samples], "sampling_rate": rate_hz}
        return dict(self.processor(**how))

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        return {**self._feeds(samples, training=training), "return_loss": True}

    def say(self, model: Any, samples: Sequence[Sample]) -> list[Any]:
        """Both sides of every row, of length 1."""
        out = model(**to(model.device, self._feeds(samples, training=False)))
        first = out.image_embeds if hasattr(out, "image_embeds") else out.audio_embeds
        return list(zip(_unit(first), _unit(out.text_embeds), strict=True))

    def expected(self, sample: Sample) -> str:
        return sample.texts()[0]

    def judge(self, expected: Sequence[str], said: Sequence[Any]) -> dict[str, float]:
        """How often the nearest text is the row's own, or one of the same words."""
        left, right = (torch.stack([torch.as_tensor(pair[i]) for pair in said]) for i in (0, 1))
        nearest = (left @ right.T).argmax(1).tolist()
        right_ones = [expected[n] == e for n, e in zip(nearest, expected, strict=True)]
        return {"recall@1": 100.0 * sum(right_ones) / max(1, len(right_ones))}

    def show(self, value: Any) -> str:
        return value if isinstance(value, str) else f"{float(value[0] @ value[1]):.3f}"


class TextPairs(Objective):
    """A text encoder: rows of `user` and `item` (with a `score` above 0), or of `question` and `answer`."""

    fields = ("user", "item")
    metric = "recall@1"

    def _sides(self, sample: Sample) -> tuple[str, str]:
        if sample.has("user", "item"):
            return str(sample.get("user")), str(sample.get("item"))
        if sample.has("question", "answer"):
            return str(sample.get("question")), sample.texts("answer")[0]
        raise InputError(f"{sample.where} is no pair of texts", hint="give user and item, or question and answer")

    def _tokens(self, texts: list[str]) -> Any:
        return self.processor(texts, padding=True, truncation=True, return_tensors="pt")

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        sides = [self._sides(s) for s in samples]
        return dict(self._tokens([text for i in (0, 1) for text in (pair[i] for pair in sides)]))

    def embed(self, model: Any, feeds: Batch) -> torch.Tensor:
        """The mean of the last states over the words, of length 1."""
        states = model(**feeds).last_hidden_state
        mask = feeds["attention_mask"][..., None].to(states.dtype)
        return _unit((states * mask).sum(1) / mask.sum(1))

    def compute(self, model: Any, batch: Batch) -> tuple[torch.Tensor, Any]:
        left, right = self.embed(model, batch).chunk(2)
        return info_nce(left, right), None

    def say(self, model: Any, samples: Sequence[Sample]) -> list[Any]:
        feeds = to(model.device, self.batch(samples, training=False))
        both = self.embed(model, feeds)
        return list(zip(both[: len(samples)], both[len(samples) :], strict=True))

    def expected(self, sample: Sample) -> str:
        return self._sides(sample)[1]

    def judge(self, expected: Sequence[str], said: Sequence[Any]) -> dict[str, float]:
        return DualEncoder.judge(self, expected, said)  # type: ignore[arg-type]


def info_nce(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Cross entropy of [B, D] against [B, D], both of length 1, each row's own the right one, in both directions."""
    logits = left @ right.T / _TEMPERATURE
    own = torch.arange(len(logits), device=logits.device)
    return (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2


def _unit(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(values, dim=-1)

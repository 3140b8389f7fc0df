"""Two things into one space, what belongs together near: pictures and texts, sounds and texts, users and items.

The loss is that of the checkpoint's kind: CLIP's softmax over the batch in both directions, SigLIP's sigmoid of every
pair (arXiv 2303.15343), InfoNCE (arXiv 1807.03748) for encoders of texts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgemm.errors import InputError
from edgemm.export.dual import features_of, text_feeds
from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import Batch, Feeds, Objective, to

_TEMPERATURE = 0.05


class Pairs(Objective):
    """Rows of two things; `sides` gives the inputs of both, `embed` their places."""

    metric = "recall@1"
    logits = False

    def left(self, sample: Sample, *, training: bool) -> Any:
        """What the first side is embedded from."""
        raise NotImplementedError

    def text(self, sample: Sample) -> str:
        """The second side."""
        raise NotImplementedError

    def embed(self, left: Sequence[Any], right: Sequence[Feeds]) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, D] and [B, D], both of length 1."""
        raise NotImplementedError

    def loss(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Of [B, D] and [B, D], each row's own the right one."""
        return info_nce(left, right, 1 / _TEMPERATURE)

    def read(self, text: str) -> Feeds:
        """A text as the model takes it."""
        spec, similarity = self.plan.processing.text, self.plan.processing.similarity
        assert spec is not None
        assert similarity is not None
        return {k: torch.from_numpy(v) for k, v in text_feeds(self.checkpoint, spec, similarity, text).items()}

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        left = [self.left(s, training=training) for s in samples]
        return {"left": left, "right": [self.read(self.text(s)) for s in samples]}

    def compute(self, model: Any, batch: Batch) -> torch.Tensor:
        return self.loss(*self.embed(batch["left"], batch["right"]))

    def say(self, model: Any, samples: Sequence[Sample]) -> list[Any]:
        """Both sides of every row."""
        made = self.batch(samples, training=False)
        device = next(self.model.parameters()).device
        both = self.embed([to_device(one, device) for one in made["left"]], [to(device, r) for r in made["right"]])
        return list(zip(*(side.cpu().numpy() for side in both), strict=True))

    def expected(self, sample: Sample) -> str:
        return self.text(sample)

    def judge(self, expected: Sequence[str], said: Sequence[Any]) -> dict[str, float]:
        """How often the nearest text is the row's own, or one of the same words."""
        left, right = (torch.stack([torch.from_numpy(pair[i]) for pair in said]) for i in (0, 1))
        nearest = (left @ right.T).argmax(1).tolist()
        right_ones = [expected[n] == e for n, e in zip(nearest, expected, strict=True)]
        return {"recall@1": 100.0 * sum(right_ones) / max(1, len(right_ones))}

    def show(self, value: Any) -> str:
        return value if isinstance(value, str) else f"similarity {float(value[0] @ value[1]):.3f}"


class DualEncoder(Pairs):
    """CLIP, SigLIP, CLAP: rows of a picture or a sound, and its `text`."""

    fields = ("text",)

    def left(self, sample: Sample, *, training: bool) -> Any:
        """Feeds and the picture or sound they were made of: one family needs its size."""
        assert self.plan.feeds is not None
        example = self.example(sample, training=training)
        made = next(iter(self.plan.feeds(example).values()))
        return {k: torch.from_numpy(v) for k, v in made.items()}, example

    def text(self, sample: Sample) -> str:
        return sample.texts()[0]

    def embed(self, left: Sequence[Any], right: Sequence[Feeds]) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.original.towers is not None
        see, read = self.original.towers
        seen = [features_of(see(feeds, example)) for feeds, example in left]
        said = [features_of(read(feeds)) for feeds in right]
        return _unit(torch.cat(seen)), _unit(torch.cat(said))

    def loss(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        model = self.model
        scale = getattr(model, "logit_scale", None)
        if scale is None:
            # CLAP has one for each direction.
            return info_nce(left, right, model.logit_scale_a.exp(), model.logit_scale_t.exp())
        if hasattr(model, "logit_bias"):
            logits = left @ right.T * scale.exp() + model.logit_bias
            signs = 2 * torch.eye(len(logits), device=logits.device) - 1
            return -torch.nn.functional.logsigmoid(signs * logits).sum(-1).mean()
        return info_nce(left, right, scale.exp())


class TextPairs(Pairs):
    """A text encoder: rows of `user` and `item`, or of `question` and `answer`."""

    fields = ("user", "item", "question", "answer")

    def _sides(self, sample: Sample) -> tuple[str, str]:
        if sample.has("user", "item"):
            return str(sample.get("user")), str(sample.get("item"))
        if sample.has("question", "answer"):
            return str(sample.get("question")), sample.texts("answer")[0]
        raise InputError(f"{sample.where} is no pair of texts", hint="give user and item, or question and answer")

    def left(self, sample: Sample, *, training: bool) -> Any:
        return self.read(self._sides(sample)[0])

    def text(self, sample: Sample) -> str:
        return self._sides(sample)[1]

    def embed(self, left: Sequence[Any], right: Sequence[Feeds]) -> tuple[torch.Tensor, torch.Tensor]:
        return self._places(left), self._places(right)

    def _places(self, texts: Sequence[Feeds]) -> torch.Tensor:
        """The mean of the last states over the words, or the first, as the checkpoint says."""
        from edgemm.export.families.bert import pooled, pooling_of

        how = pooling_of(self.checkpoint)
        found = [pooled(self.model(**feeds).last_hidden_state, feeds["attention_mask"], how) for feeds in texts]
        return _unit(torch.cat(found))


def info_nce(left: torch.Tensor, right: torch.Tensor, scale: Any, other_scale: Any = None) -> torch.Tensor:
    """Cross entropy of [B, D] against [B, D], each row's own the right one, in both directions."""
    logits = left @ right.T
    own = torch.arange(len(logits), device=logits.device)
    back = scale if other_scale is None else other_scale
    entropy = torch.nn.functional.cross_entropy
    return (entropy(logits * scale, own) + entropy(logits.T * back, own)) / 2


def to_device(value: Any, device: Any) -> Any:
    """Feeds on a device, with the example that they were made of where there is one."""
    return (to(device, value[0]), value[1]) if isinstance(value, tuple) else to(device, value)


def _unit(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(values, dim=-1)

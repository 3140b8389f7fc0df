"""Answers and captions by chat models that read pictures or sounds: the answer is learned, the prompt is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemm.errors import InputError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.model_plan import Example
from edgemm.export.precision.calibration import RATE_HZ
from edgemm.export.train.data import Sample, Splits
from edgemm.export.train.objectives.base import IGNORED, Batch, Objective, to, together
from edgemm.export.train.options import TrainOptions
from edgemm.tasks.answer_metrics import exact_match
from edgemm.tasks.prompts import make_prompt
from edgemm.tasks.prompts.base import Context, Prompt, user
from edgemm.tasks.scoring import measured

CAPTION = "Describe the picture."
_ALIGNED = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")
_ANSWER_TYPE = {"paligemma": 1}
"""The token type of an answer: where the prompt sees itself whole, the answer must not be seen from before."""


class Texts(Objective):
    """What objectives share whose answers are texts: rows with `answer` or `text`, one or several."""

    answers = False

    @classmethod
    def load(cls, checkpoint: Checkpoint, splits: Splits, options: TrainOptions) -> Objective:
        made = super().load(checkpoint, splits, options)
        assert isinstance(made, Texts)
        made.answers = "answer" in splits.train.fields
        made.metric = "vqa_accuracy" if made.answers else "cider"
        return made

    def expected(self, sample: Sample) -> list[str]:
        return sample.texts("answer" if sample.has("answer") else "text")

    def told(self, sample: Sample, said: Any) -> dict[str, Any]:
        asked = sample.has("answer") or (sample.has("question") and not sample.has("text"))
        return {"answer" if asked else "text": said}

    def judge(self, expected: Sequence[list[str]], said: Sequence[str]) -> dict[str, float]:
        found = measured("answer" if self.answers else "caption", expected, said)
        if not self.answers:
            found |= {"exact_match": exact_match(expected, said)}
        return {name: scores.total for name, scores in found.items()}

    def show(self, value: Any) -> str:
        return value if isinstance(value, str) else " / ".join(value)


class Chat(Texts):
    """A decoder-only model that reads a prompt: `question` and `answer`, or `text` for what is to be described."""

    fields = ("text", "answer")

    @property
    def next_token(self) -> bool:
        return True

    @property
    def _context(self) -> Context:
        assert self.original.context is not None
        return self.original.context

    def picture(self, sample: Sample) -> NDArray[np.uint8] | None:
        return sample.picture() if sample.has("image") or sample.has("file_name") else None

    def sound(self, sample: Sample) -> NDArray[np.float32] | None:
        return sample.sound(RATE_HZ) if sample.has("audio") and self.plan.takes == "audio" else None

    def example(self, sample: Sample, *, training: bool) -> Example:
        made = super().example(sample, training=training)
        if made.image is None and made.audio is None:
            raise InputError(
                f"{sample.where} has no {self.plan.takes}", hint=f"this model is shown an {self.plan.takes}"
            )
        return made if sample.has("question") else Example(made.image, made.audio, CAPTION)

    def _prompt(self, example: Example) -> tuple[Prompt, Batch]:
        """A prompt, and what the model is called with for it."""
        images = [] if example.image is None else [example.image]
        prompt = make_prompt([user(example.question, images, example.audio)], self._context)
        ids = torch.tensor([prompt.ids])
        assert self.original.inputs_of is not None
        return prompt, {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            **self.original.inputs_of(prompt, example),
        }

    def _answer(self, example: Example, prompt: Prompt, text: str) -> list[int]:
        """The tokens of an answer up to the end of its turn, as the chat template writes them behind the prompt."""
        context, eos = self._context, self._context.tokens.eos
        if context.processing.chat is not None:
            images = [] if example.image is None else [example.image]
            turn = {"role": "assistant", "content": [{"type": "text", "text": text}]}
            whole = make_prompt([user(example.question, images, example.audio), turn], context).ids
            ends = [i for i in range(len(prompt.ids), len(whole)) if whole[i] in eos]
            if whole[: len(prompt.ids)] == prompt.ids and ends:
                return whole[len(prompt.ids) : ends[0] + 1]
        return [*context.tokenizer.encode(text, specials=False), eos[0]]

    def _lesson(self, sample: Sample, *, training: bool) -> Batch:
        example = self.example(sample, training=training)
        prompt, inputs = self._prompt(example)
        answer = torch.tensor([self._answer(example, prompt, self.expected(sample)[0])])
        length = inputs["input_ids"].shape[1]
        kind = _ANSWER_TYPE.get(self.plan.model_type, 0)
        behind = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
        for name in _ALIGNED:
            if name in inputs and inputs[name].shape == (1, length):
                inputs[name] = torch.cat([inputs[name], behind.get(name, torch.full_like(answer, kind))], 1)
        labels = torch.cat([torch.full((1, length), IGNORED), answer], 1)
        return {**inputs, "labels": labels}

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        return {"parts": together([self._lesson(s, training=training) for s in samples], _ALIGNED)}

    def say(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        said = []
        for sample in samples:
            prompt, inputs = self._prompt(self.example(sample, training=False))
            ids = model.generate(
                **to(model.device, inputs), max_new_tokens=self.options.max_new_tokens, do_sample=False
            )[0]
            said.append(self._context.tokenizer.decode(ids[len(prompt.ids) :].tolist()).strip())
        return said

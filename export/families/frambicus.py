"""Frambicus: sees, hears and reads; captions, answers, describes, finds, ranks, transcribes. The project's own.

One checkpoint, two models of a bundle: what sees and writes, and `speech`, which is Moonshine as it is. They share a
table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import GenerationSpec, MemorySpec, SimilaritySpec, TokensSpec
from edgemm.export.chat_vlm import image_settings
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.detectors import as_rows
from edgemm.export.families import moonshine
from edgemm.export.families.efficientnet_lite0 import SameConv
from edgemm.export.frambicus import FrambicusForQuestionAnswering
from edgemm.export.frambicus.graphs import MOST_FRAMES, graph_plans
from edgemm.export.image_spec import image_spec
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import Example, ModelPlan, Reference
from edgemm.export.seq2seq import STEPS, said
from edgemm.export.text import tokenizer_files
from edgemm.export.tracing import use_plain_attention

MODEL_TYPE = "frambicus"
TASKS = ("caption", "answer", "describe", "detect", "classify", "embed", "retrieve", "recommend", "transcribe")
# Towers may stand apart, in checkpoints of their own (`Checkpoint.towers`).
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("vision.blocks.|_blocks.",),
    "connector": ("connector.tokens.",),
    "detector": ("detector.layers.",),
    "decoder": ("text.layers.",),
    "audio encoder": (
        "speech.model.encoder.layers.|model.encoder.layers.",
        "speech.model.encoder.conv1.|model.encoder.conv1.",
    ),
    "speech decoder": ("speech.model.decoder.layers.|model.decoder.layers.",),
}

SPEECH = "speech"
_FRAMES = 8  # of the clips that it is trained on
_LONGEST = 64  # new tokens

Arrays = dict[str, NDArray[Any]]


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """vision_encoder, grid_encoder, decoder, embed_tokens, memory, text_encoder; and the three graphs of `speech`."""
    original, traced = load_pair(FrambicusForQuestionAnswering, checkpoint)
    use_plain_attention(traced)
    for module in traced.vision.modules():
        if isinstance(module, SameConv):
            module.fuse()
    config = original.config
    text, files = tokenizer_files(checkpoint)
    image = image_spec(image_settings(checkpoint), config.vision_config.image_size)
    labels = (config.detector_config.id2label, config.vision_config.id2label)
    found, classes = (tuple(str(names[i]) for i in range(len(names))) for names in labels)
    asks = _Asked(checkpoint, original, image, text)
    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=tuple(task for task in TASKS if task not in moonshine.TASKS),
        graphs=graph_plans(traced, (image.height_px, image.width_px)),
        processing=Processing(
            image=image,
            text=text,
            memory=_memory_spec(config),
            similarity=_similarity_spec(original),
            functions=_FUNCTIONS,
        ),
        tokens=TokensSpec(
            vocab_size=config.text_config.vocab_size,
            bos=config.bos_token_id,
            eos=(config.eos_token_id,),
            pad=config.pad_token_id,
            decoder_start=config.bos_token_id,
        ),
        generation=GenerationSpec(
            max_new_tokens=_LONGEST,
            max_positions=config.text_config.max_position_embeddings,
            tasks={str(task): int(token) for task, token in config.task_tokens.items()},
        ),
        context=config.text_config.max_position_embeddings,
        files=files,
        labels=found,
        task_labels={"classify": classes},
        feeds=asks.feeds,
        reference=asks.caption,
        references={
            "answer": asks.answer,
            "describe": asks.describe,
            "detect": asks.detect,
            "classify": asks.classify,
            "embed": asks.embed,
        },
        beside={SPEECH: moonshine.plan_of(checkpoint, original.speech, traced.speech)},
    )


_FUNCTIONS = {
    **dict.fromkeys(("caption", "answer", "describe", "embed", "retrieve", "recommend"), "memory"),
    **dict.fromkeys(("detect", "classify"), "grid"),
}


def _memory_spec(config: Any) -> MemorySpec:
    text, cells = config.text_config, (config.vision_config.image_size // 32) ** 2
    return MemorySpec(
        frames=min(_FRAMES, MOST_FRAMES),
        concepts=min(text.concepts, len(config.vision_config.id2label)),
        finds=min(text.finds, cells),
        finds_in_clips=min(text.finds_in_clips, cells),
        frame_period_s=config.connector_config.frame_period_s,
    )


def _similarity_spec(model: Any) -> SimilaritySpec:
    return SimilaritySpec(
        scale=float(model.embedder.logits(torch.ones(1, 1), torch.ones(1, 1)).detach()),
        template="a picture of {}",
        text_tokens=model.config.text_config.max_position_embeddings,
        pad=model.config.pad_token_id,
        lower_case=True,
    )


class _Asked:
    """What the untouched model says to examples, and what its graphs are fed for them."""

    def __init__(self, checkpoint: Checkpoint, model: Any, image: Any, text: Any) -> None:
        from edgemm.processing.text import Tokenizer

        self.model, self.image = model, image
        self.tokenizer = Tokenizer(checkpoint.path / "tokenizer.json", text)
        self._fed: dict[int, tuple[Example, dict[str, Arrays]]] = {}

    def feeds(self, example: Example) -> dict[str, Arrays]:
        """The inputs of the two encoders; both are asked for, of every example, more than once."""
        if example.image is None:
            return {}
        if id(example) not in self._fed:
            self._fed[id(example)] = (example, self._made(example.image))
        return self._fed[id(example)][1]

    def _made(self, picture: Any) -> dict[str, Arrays]:
        from edgemm.export.frambicus.vision import cells_in

        pixels = self._pixels([picture])[0]
        with torch.no_grad():
            grids = self.model.vision.grids(pixels)
            features = cells_in([grid[:, None] for grid in grids], self.model.vision.scales)
        return {
            "vision_encoder": {"pixel_values": pixels.numpy()},
            "grid_encoder": {"image_features": features.numpy()},
        }

    def _pixels(self, pictures: Sequence[Any]) -> torch.Tensor:
        """[1, F, 3, H, W]"""
        from edgemm.processing.image import preprocess

        return torch.from_numpy(np.stack([preprocess(p, self.image).pixel_values[0] for p in pictures]))[None]

    def caption(self, example: Example) -> Reference:
        """The sentence about its picture."""
        return self._said("caption", "", [example.image])

    def answer(self, example: Example) -> Reference:
        """The answer to its question."""
        from edgemm.processing.memory import plain_question

        return self._said("answer", plain_question(example.question), [example.image])

    def describe(self, example: Example) -> Reference:
        """What happens in three frames of its picture."""
        from edgemm.export.task_check import clip_of

        frames = clip_of(example)
        times_s = torch.arange(len(frames))[None] * 0.4
        return self._said("describe", "", frames, frame_times_s=times_s)

    def _said(self, task: str, text: str, pictures: Sequence[Any], **more: Any) -> Reference:
        ids = torch.tensor([self._prompt(task, text)])
        pixels = self._pixels(pictures)
        with torch.no_grad():
            out = self.model.generate(ids, pixel_values=pixels, max_new_tokens=STEPS, do_sample=False, **more)[0]
        return said(out[ids.shape[1] :].tolist(), [self.model.config.eos_token_id])

    def _prompt(self, task: str, text: str) -> list[int]:
        config = self.model.config
        words = self.tokenizer.encode(text, specials=False) if text else []
        return [config.bos_token_id, *words, config.task_tokens[task]]

    def detect(self, example: Example) -> Reference:
        """Every query's probabilities and box."""
        with torch.no_grad():
            found = self.model.detector(self.model.vision.grids(self._pixels([example.image])[0]))
        return Reference(rows=as_rows(found.logits[0].numpy(), found.boxes[0].numpy(), "softmax"))

    def classify(self, example: Example) -> Reference:
        """The vision tower's class probabilities."""
        with torch.no_grad():
            (logits,) = self.model.vision({"pixel_values": self._pixels([example.image])[0]})
        return Reference(probabilities=logits.softmax(-1)[0].numpy())

    def embed(self, example: Example) -> Reference:
        """The vectors of its picture and of its question."""
        ids = torch.tensor([self._prompt("recommend", example.question.lower())])
        with torch.no_grad():
            both = (self.model.embed_images(self._pixels([example.image])), self.model.embed_texts(ids))
        return Reference(values=torch.cat(both, dim=1)[0].numpy())

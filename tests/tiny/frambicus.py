"""A Frambicus of tiny towers: 64 px pictures, ten classes, three labels, a vocabulary of 300.

It holds two models, whose components have their names before them: no entry of the families' table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import MoonshineForConditionalGeneration, PreTrainedTokenizerFast

from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.families import efficientnet_lite0
from edgemm.export.frambicus import FrambicusConfig, FrambicusForQuestionAnswering, FrambicusImageProcessor
from edgemm.export.frambicus.building import name_classes
from edgemm.export.frambicus.configuration import TASKS
from tests import checkpoints

LABELS = ("cup", "dog", "boat")
_FIRST_TASK = 290


def frambicus(path: Path, *, seed: int = 5) -> Path:
    """The checkpoint; its towers stand beside it."""
    speech = checkpoints.moonshine(path.with_name(f"{path.name}-speech"))
    sight = find_checkpoint(checkpoints.efficientnet_lite0(path.with_name(f"{path.name}-sight")))
    hearing = MoonshineForConditionalGeneration.from_pretrained(speech)
    torch.manual_seed(seed)
    model = FrambicusForQuestionAnswering(_config(hearing.config, sight.config["id2label"])).eval()
    model.vision.load_state_dict(efficientnet_lite0.load(sight).state_dict())
    model.speech.load_state_dict(hearing.state_dict())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(speech)
    name_classes(model, tokenizer)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    FrambicusImageProcessor(size={"height": 64, "width": 64}).save_pretrained(path)
    return path


def _config(speech: Any, labels: dict[str, str]) -> FrambicusConfig:
    width = speech.hidden_size
    plain = {k: v for k, v in speech.to_dict().items() if k not in ("dtype", "architectures", "transformers_version")}
    return FrambicusConfig(
        vision_config={"id2label": {int(i): name for i, name in labels.items()}, "image_size": 64},
        speech_config=plain,
        text_config={
            "hidden_size": width,
            "vocab_size": speech.vocab_size,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 96,
        },
        detector_config={
            "id2label": dict(enumerate(LABELS)), "width": 32, "heads": 4, "inner": 64, "decoder_layers": 2,
        },
        task_tokens={task: _FIRST_TASK + i for i, task in enumerate(TASKS)},
        embedding_size=24,
    )  # fmt: skip

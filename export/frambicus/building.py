"""An untrained Frambicus over real towers: the repository's Moonshine and EfficientNet-lite0."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import Wav2Vec2FeatureExtractor

from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.families import efficientnet_lite0
from edgemm.export.frambicus.configuration import FrambicusConfig
from edgemm.export.frambicus.locate import towers
from edgemm.export.frambicus.modeling import FrambicusCore
from edgemm.export.frambicus.processing import FrambicusImageProcessor, FrambicusProcessor
from edgemm.export.frambicus.tokenization import FrambicusTokenizer
from edgemm.export.loading import from_pretrained

M = TypeVar("M", bound=FrambicusCore)


def from_towers(cls: type[M], path: Path | None = None, *, labels: Iterable[str] = (), **settings: Any) -> M:
    """A model of `cls` in evaluation and fp32: towers as in the composite checkpoint at `path`, the rest drawn.

    `labels` name what the detector finds; `settings` go to `FrambicusConfig`. torch's generator decides what is
    drawn. Raises CheckpointError for a checkpoint without both towers.
    """
    path = path or towers()
    sight, speech = find_checkpoint(path / "labels"), find_checkpoint(path / "speech")
    tower = efficientnet_lite0.load(sight)
    from transformers import MoonshineForConditionalGeneration

    hearing = from_pretrained(MoonshineForConditionalGeneration, speech)
    names = dict(enumerate(labels))
    config = FrambicusConfig(
        vision_config={"id2label": sight.config["id2label"]} | settings.pop("vision_config", {}),
        speech_config=_plain(hearing.config),
        detector_config=({"id2label": names} if names else {}) | settings.pop("detector_config", {}),
        **settings,
    )
    model = cls(config)
    model.vision.load_state_dict(tower.state_dict())
    model.speech.load_state_dict(hearing.state_dict())
    model.speech.generation_config = copy.deepcopy(hearing.generation_config)
    tokenizer = FrambicusTokenizer.from_pretrained(path / "speech")
    name_classes(model, tokenizer)
    model.eval()
    return model


def name_classes(model: FrambicusCore, tokenizer: Any) -> None:
    """Spell the vision tower's classes for the concept tokens; of several names the first counts."""
    labels = model.config.vision_config.id2label
    names = [str(labels[i]).split(" / ")[0].split(" (")[0] for i in range(len(labels))]
    with torch.no_grad():
        model.concepts.name_classes([tokenizer.encode(name.lower(), add_special_tokens=False) for name in names])


def processor_of(path: Path | None = None) -> FrambicusProcessor:
    """The processor over the composite checkpoint at `path`."""
    path = path or towers()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(path / "speech")
    return FrambicusProcessor(FrambicusImageProcessor(), extractor, FrambicusTokenizer.from_pretrained(path / "speech"))


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as a dictionary, without what belongs to how it was loaded."""
    loaded = ("dtype", "_name_or_path", "transformers_version", "architectures")
    return {key: value for key, value in config.to_dict().items() if key not in loaded}

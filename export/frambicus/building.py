"""An untrained Frambicus over real towers: the repository's Moonshine and EfficientNet-lite0."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from transformers import Wav2Vec2FeatureExtractor

from edgemm.errors import CheckpointError
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
    sight = find_checkpoint(path / "labels")
    tower, hearing = _loaded(path)
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


def tower_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of both towers in the composite checkpoint at `path`, by Frambicus's names."""
    tower, hearing = _loaded(path)
    parts = {"vision": tower.state_dict(), "speech": hearing.state_dict()}
    return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}


def save_without_towers(model: FrambicusCore, path: Path, towers: str) -> None:
    """Write `model` in fp16 without what is in the composite checkpoint `towers`, a path relative to `path`.

    Raises CheckpointError where the towers differ from the model's.
    """
    path.mkdir(parents=True, exist_ok=True)  # what is beside it is found from it
    state = model.state_dict()
    strange = [name for name, value in tower_weights(path / towers).items() if not torch.equal(state[name], value)]
    if strange:
        raise CheckpointError(
            f"{strange[0]} and {len(strange) - 1} more are not as in {path / towers}",
            hint="towers that were trained are saved by save_pretrained",
        )
    own = {n: v for n, v in state.items() if n.split(".")[0] not in ("vision", "speech")}
    config = copy.deepcopy(model.config)
    config.towers = towers
    config.save_pretrained(path)
    halves = {name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in own.items()}
    save_file(halves, path / "model.safetensors", metadata={"format": "pt"})


def _loaded(path: Path) -> tuple[Any, Any]:
    from transformers import MoonshineForConditionalGeneration

    tower = efficientnet_lite0.load(find_checkpoint(path / "labels"))
    return tower, from_pretrained(MoonshineForConditionalGeneration, find_checkpoint(path / "speech"))


def name_classes(model: FrambicusCore, tokenizer: Any) -> None:
    """Spell the vision tower's classes and the detector's labels."""
    for speller, labels in (
        (model.concepts.speller, model.config.vision_config.id2label),
        (model.finds.speller, model.config.detector_config.id2label),
    ):
        names = [spoken_name(str(labels[i])) for i in range(len(labels))]
        with torch.no_grad():
            speller.name_classes([tokenizer.encode(name, add_special_tokens=False) for name in names])


def spoken_name(label: str) -> str:
    """What a caption calls a class: "cup" of "Cup / mug (ceramic)"."""
    return label.split(" / ")[0].split(" (")[0].lower()


def processor_of(path: Path | None = None) -> FrambicusProcessor:
    """The processor over the composite checkpoint at `path`."""
    path = path or towers()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(path / "speech")
    return FrambicusProcessor(FrambicusImageProcessor(), extractor, FrambicusTokenizer.from_pretrained(path / "speech"))


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as a dictionary, without what belongs to how it was loaded."""
    loaded = ("dtype", "_name_or_path", "transformers_version", "architectures")
    return {key: value for key, value in config.to_dict().items() if key not in loaded}

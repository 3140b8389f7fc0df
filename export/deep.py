"""Checkpoints that do not fit into memory twice.

A runtime cannot hold their graphs beside the original. So parity and the task are checked on a copy of the checkpoint
at full width, cut to two layers of each stack, and the whole graphs by the hash of every weight: each must be one of
the checkpoint's, and each of the checkpoint's must have arrived.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from edgemm.errors import CheckFailed
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.store import Stored

LAYERS = 2
# The original, and one component again in a runtime.
_TIMES_FP32, _BASE_BYTES = 2.0, 2_000_000_000
_LARGE_BYTES = 1_000_000_000

_COUNTS = ("num_hidden_layers", "depth", "num_layers", "encoder_layers", "decoder_layers")
_KINDS = "layer_types"
_INDICES = ("fullatt_block_indexes", "deepstack_visual_indexes")
_LAYER = re.compile(r"^(.*\.(?:layers|layer|blocks|h)\.)(\d+)(\..+)$")
_SMALL_BYTES = 64 << 20
# Tables that a graph computes for itself: positions, rotary frequencies, masks.
_TABLE_BYTES = 1 << 20
_INLINE_BYTES = 1024


def is_deep(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint must be checked in this way, by the memory that is free."""
    whole = 4 * checkpoint.parameters
    free = int(psutil.virtual_memory().available)
    return whole > _LARGE_BYTES and _TIMES_FP32 * whole + _BASE_BYTES > free


def shallow(checkpoint: Checkpoint, directory: Path) -> Path:
    """Write `checkpoint` with the first layer of each stack and the first of another kind, else the second."""
    directory.mkdir()
    config = copy.deepcopy(checkpoint.config)
    kept = {name: _cut(part) for name, part in _stacks(config)}
    tensors: dict[str, torch.Tensor] = {}
    for file in checkpoint.weight_files:
        with safe_open(file, "pt") as weights:
            names = {name: _renamed(name, kept) for name in weights.keys()}  # noqa: SIM118
            tensors |= {new: weights.get_tensor(old) for old, new in names.items() if new}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    for path in checkpoint.path.iterdir():
        weights_like = path in checkpoint.weight_files or path.name.endswith(".index.json")
        if path.is_file() and not weights_like and path.stat().st_size <= _SMALL_BYTES:
            shutil.copyfile(path, directory / path.name)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _stacks(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of a configuration that have layers; the root is called "text"."""
    for name, part in {"text": config, **config}.items():
        if isinstance(part, dict) and any(isinstance(part.get(key), int) for key in _COUNTS):
            yield name.removesuffix("_config"), part


def _cut(config: dict[str, Any]) -> dict[int, int]:
    """Shorten one stack in place; which of its layers stays as which."""
    kinds = config.get(_KINDS) or []
    special = [i for key in _INDICES for i in config.get(key) or [] if i > 0]
    other = next((i for i, kind in enumerate(kinds) if kind != kinds[0]), min(special, default=1))
    kept = {0: 0, other: 1}
    for key in _COUNTS:
        if isinstance(config.get(key), int):
            config[key] = min(config[key], LAYERS)
    if kinds:
        config[_KINDS] = [kinds[i] for i in kept if i < len(kinds)]
    for key in _INDICES:
        if config.get(key):
            config[key] = [kept[i] for i in config[key] if i in kept]
    return kept


def _renamed(name: str, kept: Mapping[str, Mapping[int, int]]) -> str | None:
    """The name of a tensor in the shallow checkpoint; None for one of a layer that is left out."""
    found = _LAYER.match(name)
    if found is None:
        return name
    stack = next((s for s in kept if s != "text" and s[:3] in found[1]), "text")
    new = kept.get(stack, {0: 0, 1: 1}).get(int(found[2]))
    return None if new is None else f"{found[1]}{new}{found[3]}"


def check_weights(checkpoint: Checkpoint, stored: Sequence[Stored]) -> int:
    """Compare the SHA-256 of every weight of the graphs with the checkpoint's in fp32; return how many are the same.

    A weight may be transposed, and flattened behind its first axis. Raises CheckFailed for one that is not the
    checkpoint's, and for one of the checkpoint's that no graph has.
    """
    written = {weight.sha256 for weight in stored}
    known: set[str] = set()
    absent = []
    for name, values in _tensors(checkpoint):
        forms = _forms(values)
        known |= forms
        if values.nbytes >= _INLINE_BYTES and not forms & written:
            absent.append(name)
    strange = [w.name for w in stored if w.sha256 not in known and w.bytes > _TABLE_BYTES]
    for names, what in ((strange, "weights of the graphs that are not the checkpoint's"), (absent, "weights left out")):
        if names:
            raise CheckFailed(
                f"{len(names)} {what}: {', '.join(names[:3])}",
                hint="export on a machine with more memory, where the whole is compared by what it computes",
            )
    return sum(weight.sha256 in known for weight in stored)


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    for file in checkpoint.weight_files:
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                yield name, weights.get_tensor(name).to(torch.float32).numpy()


def _forms(values: np.ndarray[Any, np.dtype[np.float32]]) -> set[str]:
    forms = {hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()}
    if values.ndim > 1:
        forms.add(hashlib.sha256(np.ascontiguousarray(values.reshape(len(values), -1).T).data).hexdigest())
    return forms

"""Writing the files of a checkpoint so that two builds give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

MAX_SHARD_BYTES = 45_000_000


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """UTF-8 JSON with a final newline, keys in the order given; no white space without indent."""
    separators = None if indent else (",", ":")
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], max_bytes: int = MAX_SHARD_BYTES) -> None:
    """`model.safetensors`, or numbered shards with an index, as transformers names them.

    Tensors go into the shards in the order of their names, so that the split is always the same.
    """
    shards = _split(tensors, max_bytes)
    if len(shards) == 1:
        _save(folder / "model.safetensors", shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(folder / name, shard)
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def _split(tensors: Mapping[str, np.ndarray], max_bytes: int) -> list[dict[str, np.ndarray]]:
    shards: list[dict[str, np.ndarray]] = [{}]
    room = max_bytes
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = max_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


def _save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    # transformers refuses a file whose metadata does not say which framework's layout it has.
    path.write_bytes(save(tensors, metadata={"format": "pt"}))

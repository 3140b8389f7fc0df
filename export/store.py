"""Writing the graphs of a bundle: weights beside their graph, equal tensors once.

Weights go to `graphs/<component>.data`. A tensor whose bytes were written for an earlier component (a tied
table) is not written again: the later graph points into the earlier file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

from edgemm.export.traced import Traced, Weights

_INLINE_BYTES = 1024
_ALIGN_BYTES = 64


@dataclass(frozen=True)
class Stored:
    """A weight that is kept beside its graph."""

    name: str
    sha256: str
    bytes: int


@dataclass
class GraphStore:
    """Writes ONNX graphs into `directory`/graphs."""

    directory: Path
    stored: list[Stored] = field(default_factory=list)
    _written: dict[str, tuple[str, int]] = field(default_factory=dict)

    def write(self, name: str, graph: Traced | onnx.ModelProto) -> tuple[str, tuple[str, ...]]:
        """Write one graph, emptying it of its weights; return its file and the weight files that it reads.

        The files are relative. One weight at a time is copied, so that a graph of gigabytes needs its memory once.
        """
        traced = graph if isinstance(graph, Traced) else Traced(graph, {})
        folder = self.directory / "graphs"
        folder.mkdir(parents=True, exist_ok=True)
        own = f"{name}.data"
        used: list[str] = []
        with (folder / own).open("wb") as data:
            for tensor in _tensors(traced.model.graph):
                values = _bytes_of(tensor, traced.weights)
                if values.nbytes >= _INLINE_BYTES:
                    used.append(self._externalise(name, tensor, values, own, data))
        if own not in used:
            (folder / own).unlink()
        (folder / f"{name}.onnx").write_bytes(traced.model.SerializeToString(deterministic=True))
        files = tuple(f"graphs/{file}" for file in dict.fromkeys(used))
        return f"graphs/{name}.onnx", files

    def _externalise(self, graph: str, tensor: TensorProto, values: memoryview, own: str, data: BinaryIO) -> str:
        digest = hashlib.sha256(values).hexdigest()
        if digest not in self._written:
            position = data.tell()
            start = -(-position // _ALIGN_BYTES) * _ALIGN_BYTES
            data.write(b"\0" * (start - position))
            data.write(values)
            self._written[digest] = (own, start)
        self.stored.append(Stored(f"{graph}: {tensor.name}", digest, values.nbytes))
        file, offset = self._written[digest]
        tensor.raw_data = b""
        set_external_data(tensor, file, offset=offset, length=values.nbytes)
        tensor.ClearField("raw_data")
        return file


def _bytes_of(tensor: TensorProto, weights: Weights) -> memoryview:
    if tensor.name not in weights:
        return memoryview(tensor.raw_data)
    return np.ascontiguousarray(weights[tensor.name]).reshape(-1).view(np.uint8).data


def _tensors(graph: onnx.GraphProto) -> list[TensorProto]:
    """Initializers and constants, in subgraphs too, with their values as raw bytes."""
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                tensors += _tensors(attribute.g)
            if attribute.HasField("t") and len(attribute.t.raw_data) >= _INLINE_BYTES:
                tensors.append(attribute.t)
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        if not tensor.raw_data and tensor.data_type != TensorProto.STRING:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    return tensors

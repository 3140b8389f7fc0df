"""Writing the graphs of a bundle: weights beside their graph, equal tensors once.

Weights go to `graphs/<component>.data`. A tensor whose bytes were written for an earlier component (a tied
table) is not written again: the later graph points into the earlier file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

_INLINE_BYTES = 1024
_ALIGN_BYTES = 64


@dataclass
class GraphStore:
    """Writes ONNX graphs into `directory`/graphs."""

    directory: Path
    _written: dict[str, tuple[str, int]] = field(default_factory=dict)

    def write(self, name: str, model: onnx.ModelProto) -> tuple[str, tuple[str, ...]]:
        """Write one graph, emptying `model` of its weights; return its file and the weight files that it reads.

        The files are relative. Nothing is copied, so that a graph of gigabytes needs its weights' memory once.
        """
        folder = self.directory / "graphs"
        folder.mkdir(parents=True, exist_ok=True)
        own = f"{name}.data"
        used: list[str] = []
        with (folder / own).open("wb") as data:
            for tensor in _tensors(model.graph):
                if len(tensor.raw_data) >= _INLINE_BYTES:
                    used.append(self._externalise(tensor, own, data.tell(), data))
        if own not in used:
            (folder / own).unlink()
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
        files = tuple(f"graphs/{file}" for file in dict.fromkeys(used))
        return f"graphs/{name}.onnx", files

    def _externalise(self, tensor: TensorProto, own: str, position: int, data: object) -> str:
        digest = hashlib.sha256(tensor.raw_data).hexdigest()
        length = len(tensor.raw_data)
        if digest not in self._written:
            start = -(-position // _ALIGN_BYTES) * _ALIGN_BYTES
            data.write(b"\0" * (start - position) + tensor.raw_data)  # type: ignore[attr-defined]
            self._written[digest] = (own, start)
        file, offset = self._written[digest]
        set_external_data(tensor, file, offset=offset, length=length)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        return file


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
        if not tensor.raw_data and tensor.data_type != TensorProto.STRING:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    return tensors

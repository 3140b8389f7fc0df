"""An ONNX graph that is being rewritten: who makes a value, who reads it, and weights that are read when needed.

Weights are not loaded with the graph: a decoder of 135 million parameters is rewritten in seconds and without
holding it in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Node = Any
"""An `onnx.NodeProto`."""

MICROSOFT = "com.microsoft"
_SMALL = 4096
_INLINE_BYTES = 1024
_ALIGN_BYTES = 4096


class Unrecognised(Exception):
    """The graph is not of the form that a rewriter knows; the message is the reason."""


@dataclass(frozen=True)
class Weight:
    """A constant tensor. `load` reads its file. int4 is one value a byte while it is in memory."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    load: Callable[[], Array]

    @classmethod
    def of(cls, array: Array) -> Weight:
        return cls(array.dtype, array.shape, lambda: array)

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


class Graph:
    """The nodes and weights of `model`, whose external data lies in `directory`.

    Nodes are removed and appended in any order; `finish` drops what no output needs and sorts the rest.
    """

    def __init__(self, model: Any, directory: Path) -> None:
        self.model = model
        self.nodes: list[Node] = list(model.graph.node)
        self.inputs = {v.name: v for v in model.graph.input}
        self.outputs = {v.name: v for v in model.graph.output}
        self.weights = {t.name: _weight(t, directory) for t in model.graph.initializer}
        self._makers: dict[str, Node] = {}
        self._users: dict[str, list[Node]] = {}
        self.index()

    def index(self) -> None:
        """Look again at who makes and reads what, after a rewrite."""
        self._makers = {o: n for n in self.nodes for o in n.output if o}
        users: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                users[name].append(node)
        self._users = users

    def maker(self, name: str, *ops: str) -> Node | None:
        """The node that makes `name`, where its operator is one of `ops`."""
        node = self._makers.get(name)
        return node if node is not None and (not ops or node.op_type in ops) else None

    def users(self, name: str) -> list[Node]:
        """The nodes that read `name`."""
        return self._users.get(name, [])

    def only_user(self, name: str, *ops: str) -> Node | None:
        """The one node that reads `name`, where its operator is one of `ops` and no output is called `name`."""
        users = self.users(name)
        fits = len(users) == 1 and users[0].op_type in ops and name not in self.outputs
        return users[0] if fits else None

    def constant(self, name: str) -> Array | None:
        """The value of a small constant."""
        weight = self.weights.get(name)
        return weight.load() if weight is not None and weight.bytes <= _SMALL else None

    def scalar(self, name: str) -> float | None:
        """The value of a constant of one element."""
        value = self.constant(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def add(self, op: str, inputs: Iterable[str], outputs: Iterable[str], domain: str = "", **attributes: Any) -> str:
        """Append a node; return its first output."""
        from onnx import helper

        outputs = list(outputs)
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def remove(self, *nodes: Node) -> None:
        """Take nodes out. Their outputs must be made by others, or be read by nobody."""
        gone = {id(n) for n in nodes}
        self.nodes = [n for n in self.nodes if id(n) not in gone]

    def cut(self, outputs: Iterable[str]) -> list[Node]:
        """The nodes that `outputs` depend on, in order of execution."""
        needed: list[Node] = []
        seen: set[int] = set()
        stack: list[tuple[str, Node | None]] = [(name, None) for name in reversed(list(outputs))]
        while stack:
            name, done = stack.pop()
            if done is not None:
                needed.append(done)
                continue
            node = self._makers.get(name)
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            stack.append(("", node))
            stack.extend((i, None) for i in node.input)
        return needed

    def prune(self) -> None:
        """Keep the nodes that the outputs need, sorted."""
        self.index()
        self.nodes = self.cut(self.outputs)
        self.index()

    def finish(self) -> None:
        """Drop nodes, weights and inputs that nobody reads."""
        self.prune()
        self.weights = {k: w for k, w in self.weights.items() if self.users(k)}
        self.inputs = {k: v for k, v in self.inputs.items() if self.users(k)}

    def save(self, directory: Path, name: str = "decoder") -> Path:
        """Write it and its weights to `directory`; return the graph's file."""
        from onnx import helper, numpy_helper

        path, data = directory / f"{name}.onnx", f"{name}.data"
        initializers = []
        with (directory / data).open("wb") as file:
            for key, weight in self.weights.items():
                if weight.bytes < _INLINE_BYTES:
                    initializers.append(numpy_helper.from_array(np.asarray(weight.load()), key))
                else:
                    initializers.append(_stream(key, weight, file, data))
        inputs, outputs = list(self.inputs.values()), list(self.outputs.values())
        made = helper.make_graph(self.nodes, name, inputs, outputs, initializers)
        versions = {o.domain: o.version for o in self.model.opset_import} | {MICROSOFT: 1}
        opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
        model = helper.make_model(made, opset_imports=opsets, ir_version=self.model.ir_version)
        path.write_bytes(model.SerializeToString(deterministic=True))
        return path


def _stream(name: str, weight: Weight, file: BinaryIO, location: str) -> Any:
    """Append a weight to `file`; return the tensor that points there."""
    from onnx import TensorProto, helper

    start = -(-file.tell() // _ALIGN_BYTES) * _ALIGN_BYTES
    file.seek(start)
    array = np.ascontiguousarray(weight.load())
    if array.dtype != weight.dtype or array.shape != weight.shape:
        raise AssertionError(f"{name}: {array.dtype} {array.shape} is not {weight.dtype} {weight.shape}")
    if array.dtype.name == "int4":
        array = packed(array)
    array.tofile(file)
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(weight.dtype), dims=weight.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", start), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _weight(tensor: Any, directory: Path) -> Weight:
    from onnx import TensorProto, helper, numpy_helper

    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    shape = tuple(tensor.dims)
    if tensor.data_location != TensorProto.EXTERNAL:
        return Weight(dtype, shape, lambda: numpy_helper.to_array(tensor))
    entry = {e.key: e.value for e in tensor.external_data}
    path, offset = directory / entry["location"], int(entry.get("offset", 0))
    if tensor.data_type == TensorProto.INT4:
        packed = (int(np.prod(shape)) + 1) // 2
        return Weight(dtype, shape, lambda: unpacked(np.memmap(path, np.uint8, "r", offset, packed), dtype, shape))
    return Weight(dtype, shape, lambda: np.memmap(path, dtype, "r", offset, shape))


def unpacked(packed: NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """int4 from two values a byte, the first in its low half."""
    halves = np.empty((len(packed), 2), np.int8)
    halves[:, 0], halves[:, 1] = (packed << 4).view(np.int8) >> 4, packed.view(np.int8) >> 4
    return halves.reshape(-1)[: int(np.prod(shape))].astype(dtype).reshape(shape)


def packed(values: Array) -> NDArray[np.uint8]:
    """int4 as two values a byte, the first in its low half."""
    flat = np.pad(values.reshape(-1).astype(np.int8), (0, values.size % 2))
    halves = flat.view(np.uint8) & np.uint8(0xF)
    pairs: NDArray[np.uint8] = halves[::2] | (halves[1::2] << np.uint8(4))
    return pairs


def attributes(node: Node) -> Mapping[str, Any]:
    """A node's attributes as python values."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}

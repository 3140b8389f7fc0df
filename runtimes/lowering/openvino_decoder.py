"""A portable decoder graph → the stateful model that OpenVINO runs fastest.

Keys and values become variables that are read, put in the order of the beams, and continued: the chain that OpenVINO's
processor plug-in fuses, with the attention after it, into one operator that appends to its cache in place. The layers
are found in the ONNX file, by the form of their subgraphs; the model that OpenVINO has read from it is changed by the
names of its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.runtimes.base import ALIGNMENT, StatePort
from edgemm.runtimes.lowering.attention import Attention, match
from edgemm.runtimes.lowering.graph import Graph, Unrecognised
from edgemm.runtimes.lowering.linear import Linear, product

BEAMS = "beam_idx"
"""The input that says which row each row of the state was."""

_EMBEDS, _MASK = "inputs_embeds", "attention_mask"


@dataclass(frozen=True)
class _Layer:
    """A layer's attention and the name of its result [B, H, S, D]."""

    attention: Attention
    mixed: str


def lower(model: Any, path: Path, states: Sequence[StatePort], *, alignment: bool) -> None:
    """Rewrite `model`, as OpenVINO read it from `path`, in place.

    Raises Unrecognised, with the model unchanged, where a layer is of another form.
    """
    graph = _graph(path)
    if not states or not {_EMBEDS, _MASK} <= graph.inputs.keys():
        raise Unrecognised(f"a graph without {_EMBEDS}, {_MASK} or a state")
    layers = _layers(graph, states)
    products = _products(graph)
    editor = _Editor(model)
    if not alignment:
        editor.drop_output(ALIGNMENT)
    for layer in layers:
        editor.attend(layer)
    for parts in products:
        editor.multiply(parts)
    editor.finish(states)


def _graph(path: Path) -> Graph:
    try:
        import onnx
    except ImportError as error:
        raise Unrecognised(f"onnx cannot be loaded: {error}") from error
    return Graph(onnx.load(path, load_external_data=False), path.parent)


def _layers(graph: Graph, states: Sequence[StatePort]) -> list[_Layer]:
    if len(states) % 2:
        raise Unrecognised("states that are no pairs of keys and values")
    found = []
    for key, value in zip(states[::2], states[1::2], strict=True):
        attention = match(graph, key, value)
        back = graph.maker(attention.output.input[0], "Transpose")
        assert back is not None
        found.append(_Layer(attention, str(back.input[0])))
    return found


def _products(graph: Graph) -> list[list[Linear]]:
    """Every product with a blocked int8 matrix, those of one value together."""
    together: dict[tuple[str, int, int], list[Linear]] = {}
    for node in graph.nodes:
        found = product(graph, node.output[0]) if node.op_type == "MatMul" else None
        if found is not None and found.block and found.weight.dtype == np.int8:
            together.setdefault((found.input, found.block, found.weight.shape[0]), []).append(found)
    return list(together.values())


def _blocks(part: Linear) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """int8 [K, N] with scales of blocks of K → [N, K / block, block], the form of which OpenVINO has kernels."""
    import cv2

    assert part.scales is not None
    rows, width = part.weight.shape
    values: NDArray[np.int8] = cv2.transpose(np.asarray(part.weight.load()))
    scales = np.ascontiguousarray(np.asarray(part.scales.load()).T)
    return values.reshape(width, rows // part.block, part.block), scales.reshape(width, -1, 1)


class _Editor:
    """Changes an OpenVINO model by the names of its values."""

    def __init__(self, model: Any) -> None:
        from openvino import Type, opset13

        self.ops = opset13
        self.model = model
        self.outputs = {name: out for op in model.get_ordered_ops() for out in op.outputs() for name in out.get_names()}
        self.beams = opset13.parameter([-1], Type.i32, name=BEAMS)
        self.beams.output(0).get_tensor().set_names({BEAMS})
        self.batch, self.past = self._sizes()
        self.assigns: list[Any] = []
        self.variables: list[Any] = []

    def _constant(self, value: Any, dtype: Any = np.int64) -> Any:
        return self.ops.constant(np.asarray(value, dtype))

    def _sizes(self) -> tuple[Any, Any]:
        """Rows of the batch and positions of the past, [1] each."""
        o, c = self.ops, self._constant
        embeds, mask = (o.shape_of(self.outputs[name]) for name in (_EMBEDS, _MASK))
        rows, new = (o.gather(embeds, c([i]), c(0)) for i in (0, 1))
        return rows, o.subtract(o.gather(mask, c([1]), c(0)), new)

    def drop_output(self, name: str) -> None:
        for result in self.model.get_results():
            if name in result.input_value(0).get_names():
                self.model.remove_result(result)

    def _replace(self, name: str, by: Any) -> None:
        for reader in list(self.outputs[name].get_target_inputs()):
            reader.replace_source_output(by)

    def attend(self, layer: _Layer) -> None:
        """One layer: its two states, and its attention as one operator."""
        o, c, a = self.ops, self._constant, layer.attention
        groups = a.heads // a.key_state.shape[1]
        key, value = (
            self._repeated(self._state(s, new), groups, s)
            for s, new in ((a.key_state, a.key), (a.value_state, a.value))
        )
        scale = c(a.scale, np.float32)
        mixed = o.scaled_dot_product_attention(self.outputs[a.query], key, value, self.outputs[a.bias], scale)
        self._replace(layer.mixed, mixed.output(0))

    def _state(self, state: StatePort, new: str) -> Any:
        """The variable of a state, with `new` behind it."""
        from openvino import PartialShape, Type
        from openvino.op.util import Variable, VariableInfo

        o, c = self.ops, self._constant
        info = VariableInfo()
        info.data_shape, info.data_type = PartialShape([-1, state.shape[1], -1, state.shape[3]]), Type.f32
        info.variable_id = state.input + state.output
        variable = Variable(info)
        empty = o.concat([self.batch, c([state.shape[1], 0, state.shape[3]])], 0)
        held = o.read_value(o.broadcast(c(0, np.float32), empty), variable)
        whole = o.concat([o.gather(held, self.beams, c(0)), self.outputs[new]], 2)
        self.assigns.append(o.assign(whole, variable))
        self.variables.append(variable)
        return whole

    def _repeated(self, whole: Any, groups: int, state: StatePort) -> Any:
        """Each head as often as query heads read it. The fused operator never writes it so."""
        if groups == 1:
            return whole
        o, c = self.ops, self._constant
        # Given by name: in its place stands the axes' mapping, with which nothing is fused.
        wide = o.broadcast(o.unsqueeze(whole, c([2])), c([1, 1, groups, 1, 1]), broadcast_spec="BIDIRECTIONAL")
        return o.reshape(wide, c([0, groups * state.shape[1], -1, state.shape[3]]), True)

    def multiply(self, parts: Sequence[Linear]) -> None:
        """Products of one value with blocked int8 matrices, as one."""
        o = self.ops
        values, scales = (np.concatenate(made) for made in zip(*map(_blocks, parts), strict=True))
        width, blocks, block = values.shape
        wide = o.multiply(o.convert(o.constant(values), "f32"), o.constant(scales))
        weight = o.reshape(wide, self._constant([width, blocks * block]), False)
        product = o.matmul(self.outputs[parts[0].input], weight, False, True)
        if len(parts) == 1:
            self._replace(parts[0].output, product.output(0))
            return
        rank = self.outputs[parts[0].input].get_partial_shape().rank.get_length()
        split = o.variadic_split(product, self._constant(rank - 1), self._constant([p.width for p in parts]))
        for part, output in zip(parts, split.outputs(), strict=True):
            self._replace(part.output, output)

    def finish(self, states: Sequence[StatePort]) -> None:
        """Variables in place of the inputs and outputs that were the state."""
        o, c = self.ops, self._constant
        for state in states:
            shape = o.concat([self.batch, c([state.shape[1]]), self.past, c([state.shape[3]])], 0)
            for reader in list(self.outputs[state.input].get_target_inputs()):
                if reader.get_node().get_type_name() == "ShapeOf":
                    self._read_shape(reader.get_node(), shape)
            self.drop_output(state.output)
        for state in states:
            self.model.remove_parameter(self.outputs[state.input].get_node())
        self.model.add_parameters([self.beams])
        self.model.add_variables(self.variables)
        self.model.add_sinks(self.assigns)
        self.model.validate_nodes_and_infer_types()

    def _read_shape(self, node: Any, shape: Any) -> None:
        for reader in list(node.output(0).get_target_inputs()):
            if node.get_output_element_type(0) != shape.get_output_element_type(0):
                shape = self.ops.convert(shape, node.get_output_element_type(0))
            reader.replace_source_output(shape.output(0))

"""Products with int8 matrices as ONNX Runtime's integer products: unsigned activations, int8 columns.

Activations without a calibrated range are quantized row by row as they come. Where the weights are in blocks, the
export has found one step a row too coarse, and what the first integers leave is quantized as well: two products with
one matrix, 15 bits of activations. That is faster than MatMulNBits where the processor multiplies bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgemm.runtimes.lowering.graph import MICROSOFT, Graph, Node, Weight, attributes
from edgemm.runtimes.lowering.linear import Linear, product

_MIDDLE, _UNIT, _STEP, _FINE, _FINE_STEP = "int8.middle", "int8.unit", "int8.step", "int8.fine", "int8.fine_step"
_LEAST, _MOST, _LAST = "int8.least", "int8.most", "int8.last"
_LEVELS = 127
_TINY = 1e-9


@dataclass(frozen=True)
class Product:
    """`output` = `input` · weight [K, N] · scales [N], which `node` computes.

    `scale` names the activation's scale where it was calibrated; the product then reads `input` through a Q/DQ pair.
    With `fine` the activation is quantized in two steps.
    """

    node: Node
    input: str
    weight: Weight
    scales: str
    name: str
    scale: str = ""
    bias: str = ""
    fine: bool = False

    @property
    def output(self) -> str:
        return str(self.node.output[0])

    @property
    def columns(self) -> str:
        return f"{self.name}.columns"


@dataclass
class Integers:
    """Values of `graph` as unsigned integers, each made once."""

    graph: Graph
    _made: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        floats = {
            _UNIT: 1.0, _STEP: 1 / _LEVELS, _FINE: 0.5 / _LEVELS, _FINE_STEP: 0.5 / _LEVELS**2, _LEAST: _TINY,
            _MOST: _LEVELS,
        }  # fmt: skip
        self.graph.weights |= {name: Weight.of(np.array(value, np.float32)) for name, value in floats.items()}
        self.graph.weights[_MIDDLE] = Weight.of(np.array(128, np.uint8))
        self.graph.weights[_LAST] = Weight.of(np.array([-1]))

    def calibrated(self, x: str, scale: str) -> str:
        """x / scale + 128."""
        if (x, scale) not in self._made:
            made = self.graph.add("QuantizeLinear", [x, scale, _MIDDLE], [f"{x}.{scale}.uint8"])
            self._made[x, scale] = made
        return self._made[x, scale]

    def rows(self, x: str) -> str:
        """x [..., K] in steps of the largest of its row, which is `peak_of(x)`, over 127; 128 means zero."""
        if (x, "") not in self._made:
            graph = self.graph
            largest = graph.add(
                "ReduceMax", [graph.add("Abs", [x], [f"{x}.size"]), _LAST], [f"{x}.largest"], keepdims=1
            )
            graph.add("Max", [largest, _LEAST], [peak_of(x)])
            levels = graph.add("Div", [_MOST, peak_of(x)], [f"{x}.levels"])
            scaled = graph.add("Mul", [x, levels], [_scaled(x)])
            self._made[x, ""] = graph.add("QuantizeLinear", [scaled, _UNIT, _MIDDLE], [f"{x}.uint8"])
        return self._made[x, ""]

    def remainders(self, x: str) -> str:
        """What the integers of x leave, in steps of 1 / 254 of theirs."""
        if (x, "fine") not in self._made:
            graph, stored = self.graph, self._made[x, ""]
            restored = graph.add("DequantizeLinear", [stored, _UNIT, _MIDDLE], [f"{x}.coarse"])
            left = graph.add("Sub", [_scaled(x), restored], [f"{x}.left"])
            self._made[x, "fine"] = graph.add("QuantizeLinear", [left, _FINE, _MIDDLE], [f"{x}.left.uint8"])
        return self._made[x, "fine"]

    def product(self, stored: str, columns: str, scales: str, output: str, *, fine: bool = False) -> str:
        """stored · columns · scales of one step of activations that are in units of their largest."""
        step = _FINE_STEP if fine else _STEP
        return self.graph.add("MatMulIntegerToFloat", [stored, columns, step, scales, _MIDDLE], [output], MICROSOFT)


def peak_of(x: str) -> str:
    """The name of the largest of each row of x [..., K], [..., 1]."""
    return f"{x}.peak"


def _scaled(x: str) -> str:
    return f"{x}.levelled"


def integer_products(graph: Graph, integers: Integers, *, blocks: bool) -> None:
    """Write every product with int8 columns, and with `blocks` every one whose matrix is in blocks."""
    for node in [n for n in graph.nodes if n.op_type in ("MatMul", "Gemm")]:
        found = _product(graph, node) or (_blocked(graph, node) if blocks else None)
        if found is None:
            continue
        graph.remove(node)
        graph.weights[found.columns] = found.weight
        if found.scale:
            _calibrated(graph, integers, found)
        else:
            _as_it_comes(graph, integers, found)
    graph.prune()


def pair(graph: Graph, name: str) -> tuple[str, str] | None:
    """What a symmetric int8 Q/DQ pair that makes `name` reads, and the name of its scale."""
    restored = graph.maker(name, "DequantizeLinear")
    stored = graph.maker(restored.input[0], "QuantizeLinear") if restored is not None else None
    if stored is None or len(stored.input) != 3:
        return None
    scale, zero = graph.weights.get(stored.input[1]), graph.constant(stored.input[2])
    plain = scale is not None and scale.shape == () and zero is not None and zero.dtype == np.int8 and not zero.any()
    return (str(stored.input[0]), str(stored.input[1])) if plain else None


def columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """weight [K, N] as int8, each column in steps of its largest over 127, and the steps [N]."""
    steps = np.maximum(np.abs(weight).max(axis=0), _TINY) / np.float32(_LEVELS)
    return np.rint(weight / steps).astype(np.int8), steps.astype(np.float32)


def _product(graph: Graph, node: Node) -> Product | None:
    """The product with int8 columns that a MatMul or Gemm is."""
    restored = graph.maker(node.input[1], "DequantizeLinear")
    if restored is None or len(restored.input) != 2:
        return None
    values, scales = (graph.weights.get(i) for i in restored.input)
    about, how = attributes(node), attributes(restored)
    turned = bool(about.get("transB", 0))
    if (
        values is None
        or scales is None
        or values.dtype != np.int8
        or len(values.shape) != 2
        or how.get("block_size", 0)
    ):
        return None
    plain = about.get("alpha", 1.0) == 1.0 and about.get("beta", 1.0) == 1.0 and not about.get("transA", 0)
    axis = 0 if turned else 1
    by_column = scales.dtype == np.float32 and scales.shape == (values.shape[axis],) and how.get("axis", 1) == axis
    bias = str(node.input[2]) if len(node.input) > 2 else ""
    if not plain or not by_column or (bias and not _is_bias(graph, bias, values.shape[axis])):
        return None
    if turned:
        values = _turned(values)
    x, scale = pair(graph, node.input[0]) or (str(node.input[0]), "")
    return Product(node, x, values, str(restored.input[1]), str(restored.input[0]), scale, bias)


def _blocked(graph: Graph, node: Node) -> Product | None:
    """The product with an int8 matrix in blocks that a MatMul is, the matrix rounded to columns."""
    found = product(graph, node.output[0])
    if found is None or found.bits != 8:
        return None
    steps = f"{found.name}.column_steps"
    graph.weights[steps] = Weight(np.dtype(np.float32), (found.width,), lambda: columns(_restored(found))[1])
    rounded = Weight(np.dtype(np.int8), found.weight.shape, lambda: columns(_restored(found))[0])
    return Product(node, found.input, rounded, steps, found.name, fine=True)


def _restored(found: Linear) -> NDArray[np.float32]:
    assert found.scales is not None
    restored: NDArray[np.float32] = found.weight.load() * np.repeat(found.scales.load(), found.block, axis=0)
    return restored


def _is_bias(graph: Graph, name: str, width: int) -> bool:
    return name in graph.weights and graph.weights[name].shape == (width,)


def _turned(weight: Weight) -> Weight:
    return Weight(weight.dtype, weight.shape[::-1], lambda: np.ascontiguousarray(np.asarray(weight.load()).T))


def _calibrated(graph: Graph, integers: Integers, found: Product) -> None:
    stored = integers.calibrated(found.input, found.scale)
    output, bias, last = found.output, found.bias, _biased(graph, found)
    if not bias and last is not None:
        graph.remove(last)
        output, bias = str(last.output[0]), next(i for i in last.input if i != found.output)
    inputs = [stored, found.columns, found.scale, found.scales, _MIDDLE]
    graph.add("MatMulIntegerToFloat", [*inputs, *(["", bias] if bias else [])], [output], MICROSOFT)


def _as_it_comes(graph: Graph, integers: Integers, found: Product) -> None:
    """Every row of the activation has a scale of its own: a step for all rows loses words to a loud one."""
    whole = integers.product(integers.rows(found.input), found.columns, found.scales, f"{found.output}.unscaled")
    if found.fine:
        left = integers.remainders(found.input)
        rest = integers.product(left, found.columns, found.scales, f"{found.output}.rest", fine=True)
        whole = graph.add("Add", [whole, rest], [f"{found.output}.both"])
    scaled = f"{found.output}.scaled" if found.bias else found.output
    graph.add("Mul", [whole, peak_of(found.input)], [scaled])
    if found.bias:
        graph.add("Add", [scaled, found.bias], [found.output])


def _biased(graph: Graph, found: Product) -> Node | None:
    """The addition of a bias to a product; not before Gelu, which takes it itself."""
    add = graph.only_user(found.output, "Add")
    bias = next((i for i in add.input if i != found.output), "") if add is not None else ""
    if (
        add is None
        or not _is_bias(graph, bias, found.weight.shape[1])
        or graph.only_user(add.output[0], "Gelu") is not None
    ):
        return None
    return add

"""Directories that other exporters made: optimum-onnx (ONNX) and optimum-intel (OpenVINO IR).

Their graphs can be listed wherever they are. A bundle is made of what one graph answers alone: classifiers, CTC and
feature extractors in portable ONNX, see `edgemm.export.foreign_plan`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.parsers import expat

from edgemm.errors import CheckpointError
from edgemm.export import families
from edgemm.export.checkpoint import Checkpoint

_IR_MAX_BYTES = 1 << 30
_IR_BITS = {"u1": 1, "u4": 4, "i4": 4, "nf4": 4, "boolean": 8}
# As OpenVINO names them → as bundles do.
_IR_PRECISIONS = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4"}
_SAFE = "run edgemm export on the checkpoint that it was made from"


@dataclass(frozen=True)
class Port:
    """An input or an output of a graph; a size that is free is a name, or "?"."""

    name: str
    dims: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} [{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class ForeignGraph:
    """A graph as its file describes it. `parameters` counts its constants, by precision in `constants`."""

    name: str
    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    constants: dict[str, int]
    bytes: int
    opset: int | None = None

    @property
    def parameters(self) -> int:
        return sum(self.constants.values())

    @property
    def precision(self) -> str:
        """What most of the constants are stored in."""
        return max(self.constants, key=lambda p: self.constants[p], default="fp32")


@dataclass(frozen=True)
class Foreign:
    """A directory of ready graphs beside a `config.json`."""

    checkpoint: Checkpoint

    @property
    def maker(self) -> str:
        return "optimum-intel" if self._files(".xml") else "optimum-onnx"

    @cached_property
    def graphs(self) -> tuple[ForeignGraph, ...]:
        """Every graph, in the order of their names. Raises CheckpointError for one that can't be read."""
        if self.maker == "optimum-intel":
            return tuple(_ir_graph(p) for p in self._files(".xml") if not p.stem.endswith("tokenizer"))
        return tuple(_onnx_graph(p) for p in self._files(".onnx"))

    def _files(self, suffix: str) -> list[Path]:
        return [f for f in self.checkpoint.weight_files if f.suffix == suffix]

    @cached_property
    def refusal(self) -> str:
        """Why no bundle can be made of it; empty where one can."""
        names = [g.name for g in self.graphs]
        if self.maker == "optimum-intel":
            return f"its graphs are OpenVINO IR ({', '.join(names)}), and a bundle holds portable ONNX"
        if names != ["model"]:
            return f"its graphs ({', '.join(names)}) answer only together, as {self.maker} runs them"
        graph = self.graphs[0]
        inputs, outputs = [p.name for p in graph.inputs], [p.name for p in graph.outputs]
        if len(inputs) != 1 or inputs[0] not in ("pixel_values", "input_values", "input_features"):
            return f"its graph takes {', '.join(inputs)}: expected pixel_values, input_values or input_features alone"
        if "logits" not in outputs and inputs[0] == "pixel_values" and set(outputs) & set(FEATURES):
            return ""
        rank = next((len(p.dims) for p in graph.outputs if p.name == "logits"), 0)
        if "pred_boxes" in outputs or rank not in ((2,) if inputs[0] == "pixel_values" else (2, 3)):
            return (
                f"its graph gives {', '.join(map(str, graph.outputs))}: expected the logits of classes or of CTC, or "
                "of pictures their features"
            )
        return ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """What a bundle of it would do; empty where there is none."""
        if self.refusal:
            return ()
        outputs = {p.name: p for p in self.graphs[0].outputs}
        if "logits" not in outputs:
            return ("embed", "retrieve", "recommend")
        return ("transcribe",) if len(outputs["logits"].dims) == 3 else ("classify",)

    @property
    def advice(self) -> str:
        """What to do where `refusal` says that there is no bundle."""
        more = ", then edgemm build --target openvino" if self.maker == "optimum-intel" else ""
        return f"{_SAFE}{more}"


# What a feature extractor gives, the best first.
FEATURES = ("image_embeds", "pooler_output", "last_hidden_state")


def foreign(checkpoint: Checkpoint) -> Foreign | None:
    """What another exporter made of a model of transformers; None for a checkpoint or a family of ready graphs."""
    family = families.known().get(checkpoint.model_type)
    if checkpoint.tensors or (family is not None and not family.classes):
        return None
    graphs = any(f.suffix in (".onnx", ".xml") for f in checkpoint.weight_files)
    return Foreign(checkpoint) if graphs else None


def _onnx_graph(path: Path) -> ForeignGraph:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no ONNX graph, or torn: {error}", hint="copy it again") from error
    graph = model.graph
    own = {t.name for t in graph.initializer}
    kinds = ((_onnx_precision(t.data_type), math.prod(t.dims)) for t in graph.initializer if math.prod(t.dims) > 1)
    return ForeignGraph(
        name=path.stem,
        path=path,
        inputs=tuple(_onnx_port(v) for v in graph.input if v.name not in own),
        outputs=tuple(map(_onnx_port, graph.output)),
        constants=_summed(kinds),
        bytes=path.stat().st_size + sum(f.stat().st_size for f in _beside(path)),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None),
    )


def _beside(path: Path) -> list[Path]:
    """The weights that optimum writes beside a graph of over 2 GB, or beside an IR's structure."""
    names = (f"{path.name}_data", f"{path.name}.data") if path.suffix == ".onnx" else (f"{path.stem}.bin",)
    return [path.with_name(n) for n in names if path.with_name(n).is_file()]


def _onnx_precision(data_type: int) -> str:
    import onnx

    name = str(onnx.TensorProto.DataType.Name(data_type)).lower()
    return {"float": "fp32", "float16": "fp16", "uint8": "int8"}.get(name, name)


def _onnx_port(value: Any) -> Port:
    dims = value.type.tensor_type.shape.dim
    return Port(value.name, tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims))


def _summed(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for key, n in pairs:
        sums[key] = sums.get(key, 0) + n
    return sums


@dataclass
class _IrReader:
    """Collects what an IR's XML says of its inputs, outputs and constants, and refuses entities."""

    layer: dict[str, str] = field(default_factory=dict)
    dims: list[str] | None = None
    text: str = ""
    names: str = ""
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    constants: list[tuple[str, int]] = field(default_factory=list)
    root: str = ""

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.root = self.root or tag
        self.text = ""
        if tag == "layer":
            self.layer = attributes
        elif tag == "data" and self.layer.get("type") == "Const":
            kind, size = attributes.get("element_type", ""), int(attributes.get("size", 0))
            bits = _IR_BITS.get(kind) or int("".join(filter(str.isdigit, kind)) or 8)
            self.constants.append((_IR_PRECISIONS.get(kind, kind), size * 8 // bits))
        elif tag == "port" and self.layer.get("type") in ("Parameter", "Result"):
            self.dims, self.names = [], attributes.get("names", "")

    def end(self, tag: str) -> None:
        if tag == "dim" and self.dims is not None:
            self.dims.append(self.text.strip())
        elif tag == "port" and self.dims is not None:
            kind = self.layer["type"]
            name = self.names or self.layer.get("output_names", "") or self.layer.get("name", "")
            port = Port(name.split(",")[0], tuple("?" if d == "-1" else int(d) for d in self.dims))
            (self.inputs if kind == "Parameter" else self.outputs).append(port)
            self.dims = None

    def write(self, text: str) -> None:
        self.text += text if self.dims is not None else ""

    def refuse(self, *_: object) -> None:
        raise ValueError("it declares a document type, which no IR does")


def _ir_graph(path: Path) -> ForeignGraph:
    reader, parser = _IrReader(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = reader.write, reader.refuse
    try:
        if path.stat().st_size > _IR_MAX_BYTES:
            raise ValueError(f"over {_IR_MAX_BYTES >> 20} MiB")
        with path.open("rb") as file:
            parser.ParseFile(file)
        if reader.root != "net":
            raise ValueError(f"its root is {reader.root!r}, expected 'net'")
    except (expat.ExpatError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no OpenVINO IR, or torn: {error}", hint="copy it again") from error
    return ForeignGraph(
        name=path.stem,
        path=path,
        inputs=tuple(reader.inputs),
        outputs=tuple(reader.outputs),
        constants=_summed(c for c in reader.constants if c[1] > 1),
        bytes=path.stat().st_size + sum(f.stat().st_size for f in _beside(path)),
    )

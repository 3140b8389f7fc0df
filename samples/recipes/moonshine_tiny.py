"""Moonshine tiny-en: from the int8 ONNX Runtime files of a wheel to a transformers checkpoint.

The wheel holds two graphs in ONNX Runtime's flatbuffers format with dynamically quantized weights
(uint8, one scale and one zero point a tensor). A weight that a MatMul reads has lost its name in
the export; the node's output still carries the module path, and that gives the name back.
Architecture: https://arxiv.org/abs/2410.15608.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_files import write_json, write_tensors
from moonshine_tokenizer import read_pieces, write_tokenizer
from wheels import RecipeError, Wheel, read

WHEEL = Wheel(
    "moonshine-voice",
    "0.0.49",
    "03edc378e5236832421ccd382b267e43b95af8008137ad6643f5baf5ba31b579",
    "MIT",
    # The wheel carries native libraries that are not used here: any machine takes the same file.
    ("--platform", "manylinux_2_34_x86_64", "--python-version", "3.11"),
)
ASSETS = "moonshine_voice/assets/tiny-en"
HIDDEN = 288
VOCABULARY = 32_768
PARAMETERS = 27_092_736

# The numbers of ONNX's TensorProto.DataType that occur in the two files.
DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_}

CONFIG = {
    "architectures": ["MoonshineForConditionalGeneration"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "decoder_hidden_act": "silu",
    "decoder_num_attention_heads": 8,
    "decoder_num_hidden_layers": 6,
    "decoder_num_key_value_heads": 8,
    "decoder_start_token_id": 1,
    "dtype": "float16",
    "encoder_hidden_act": "gelu",
    "encoder_num_attention_heads": 8,
    "encoder_num_hidden_layers": 6,
    "encoder_num_key_value_heads": 8,
    "eos_token_id": 2,
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "is_encoder_decoder": True,
    "max_position_embeddings": 194,
    "model_type": "moonshine",
    "pad_token_id": 2,
    "rope_parameters": {
        "partial_rotary_factor": 0.9,
        "rope_theta": 10000.0,
        "rope_type": "default",
    },
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
GENERATION = {
    "bos_token_id": 1,
    "decoder_start_token_id": 1,
    "do_sample": False,
    "eos_token_id": 2,
    "max_length": 194,
    "pad_token_id": 2,
}
PREPROCESSOR = {
    "do_normalize": False,
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "processor_class": "Wav2Vec2Processor",
    "return_attention_mask": True,
    "sampling_rate": 16_000,
}


@dataclass(frozen=True)
class Node:
    """One operator of a graph: its name, and the names of what it reads and of what it writes."""

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Graph:
    """All constants and all operators of a model, those of its subgraphs included."""

    constants: Mapping[str, np.ndarray]
    nodes: tuple[Node, ...]

    def dequantized(self, name: str) -> np.ndarray:
        """The float32 values that a tensor named `*_quantized` stands for."""
        stem = name.removesuffix("_quantized")
        zero = self.constants[f"{stem}_zero_point"].astype(np.float32)
        values = self.constants[name].astype(np.float32) - zero
        return np.asarray(values * self.constants[f"{stem}_scale"])


def build(folder: Path, cache: Path) -> None:
    """Write the whole `speech` checkpoint to `folder` (made if absent)."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = read_graph(read(WHEEL, cache, f"{ASSETS}/encoder_model.ort"))
    decoder = read_graph(read(WHEEL, cache, f"{ASSETS}/decoder_model_merged.ort"))
    tensors = {**encoder_tensors(encoder), **decoder_tensors(decoder)}
    count = sum(tensor.size for tensor in tensors.values())
    if count != PARAMETERS:
        raise RecipeError(f"found {count:,} parameters where {PARAMETERS:,} were expected")
    write_tensors(folder, {name: value.astype(np.float16) for name, value in tensors.items()})
    write_tokenizer(folder, read_pieces(read(WHEEL, cache, f"{ASSETS}/tokenizer.bin")))
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "generation_config.json", GENERATION)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    licence = read(WHEEL, cache, "moonshine_voice-0.0.49.dist-info/licenses/LICENSE")
    (folder / "LICENSE").write_bytes(licence.rstrip() + b"\n")


def read_graph(data: bytes) -> Graph:
    """Constants and operators of an `.ort` file."""
    reader: Any = importlib.import_module("onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession")
    root = reader.InferenceSession.GetRootAsInferenceSession(data, 0).Model().Graph()
    constants: dict[str, np.ndarray] = {}
    nodes: list[Node] = []
    for graph in _with_subgraphs(root):
        for tensor in map(graph.Initializers, range(graph.InitializersLength())):
            constants[tensor.Name().decode()] = _array(tensor)
        nodes += [_node(node) for node in map(graph.Nodes, range(graph.NodesLength()))]
    return Graph(constants, tuple(nodes))


def _with_subgraphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in map(graph.Nodes, range(graph.NodesLength())):
        for attribute in map(node.Attributes, range(node.AttributesLength())):
            if attribute.G() is not None:
                yield from _with_subgraphs(attribute.G())


def _array(tensor: Any) -> np.ndarray:
    shape = [tensor.Dims(axis) for axis in range(tensor.DimsLength())]
    raw = tensor.RawDataAsNumpy().tobytes()
    return np.frombuffer(raw, DTYPES[tensor.DataType()]).reshape(shape)


def _node(node: Any) -> Node:
    inputs = tuple(node.Inputs(index).decode() for index in range(node.InputsLength()))
    return Node(node.OpType().decode(), node.Name().decode(), inputs, node.Outputs(0).decode())


def encoder_tensors(graph: Graph) -> dict[str, np.ndarray]:
    """The encoder's weights under their transformers names, float32."""
    found = _projections(graph, "model.encoder", "/")
    for name, value in graph.constants.items():
        if re.fullmatch(r"layers\.\d+\..*\.(weight|bias)|layer_norm\.weight", name):
            found[f"model.encoder.{name}"] = value
        convolution = re.fullmatch(r"(conv\d\.(?:weight|bias))(_add_tensor)?", name)
        if convolution:
            found[f"model.encoder.{convolution[1]}"] = value
    for node in graph.nodes:
        if node.name in ("/groupnorm/Mul", "/groupnorm/Add"):
            kind = "weight" if node.op == "Mul" else "bias"
            constant = next(name for name in node.inputs if name in graph.constants)
            found[f"model.encoder.groupnorm.{kind}"] = graph.constants[constant].ravel()
    return found


def decoder_tensors(graph: Graph) -> dict[str, np.ndarray]:
    """The decoder's weights under their transformers names, float32; the tied head once.

    The file merges a first-step and a next-step branch; weights that both read are named
    `*_merged_0`. Raises RecipeError when the output head is not the embedding transposed.
    """
    found = _projections(graph, "model.decoder", "/model/decoder/")
    for name, value in graph.constants.items():
        own = re.fullmatch(r"(model\.decoder\..*(?:norm\.weight|\.bias))(_merged_0)?", name)
        if own:
            found[own[1]] = value
    table = graph.dequantized("model.decoder.embed_tokens.weight_merged_0_quantized")
    # The If that holds the two branches also writes `logits`; only the operators read the weight.
    heads = (node.inputs for node in graph.nodes if node.output == "logits")
    weight = next(name for names in heads for name in names if name.endswith("_quantized"))
    if not np.array_equal(graph.dequantized(weight).T, table):
        raise RecipeError("the output head is not tied to the embedding")
    found["model.decoder.embed_tokens.weight"] = table
    return found


def _projections(graph: Graph, prefix: str, root: str) -> dict[str, np.ndarray]:
    """Weights of the linear layers, [out, in] as torch stores them (ONNX has [in, out])."""
    path = re.compile(re.escape(root) + r"(layers\.\d+)/(\w+)/(\w+)/(?:MatMul|Add)")
    found: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        module = path.match(node.output)
        weights = [n for n in node.inputs if n.endswith("_quantized") and n in graph.constants]
        if module and weights:
            name = f"{prefix}.{module[1]}.{module[2]}.{module[3]}.weight"
            found[name] = graph.dequantized(weights[0]).T
    return found

"""The lowered decoders of ONNX Runtime and OpenVINO, and a graph of the form of the first built by hand, interleaved.

    python benchmarks/decoder_lowering.py --work /tmp/decoder --rounds 20

The decoder of SmolVLM-256M (30 layers, hidden 576, 9 heads over 3) with random weights is traced and quantized as
export does it, lowered as the runtime does it, and timed over one row: prefill of 80, 200 and 1000 positions, and one
token after 200 and after 1000. Written once to --work, and read from there the next time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgemm.runtimes.base import SessionOptions, StatePort
from edgemm.runtimes.lowering.bound import load_bound
from edgemm.runtimes.lowering.cache import lowered_decoder
from edgemm.runtimes.lowering.graph import Unrecognised
from edgemm.runtimes.onnxruntime import OrtDecoder, OrtSession
from edgemm.runtimes.openvino_blobs import collecting

LAYERS, HIDDEN, HEADS, KV_HEADS, DIM, INNER, VOCABULARY = 30, 576, 9, 3, 64, 1536, 49280
CAPACITY, CONTEXT, THETA, EPSILON = 1280, 8192, 100_000.0, 1e-5
PREFILLS, PASTS, STEPS, FORCED = (80, 200, 1000), (200, 1000), 8, 64
STATES = tuple(
    StatePort(f"past_key_values.{i}.{part}", f"present.{i}.{part}", (-1, KV_HEADS, -1, DIM), 2)
    for i in range(LAYERS)
    for part in ("key", "value")
)


def export_decoder(work: Path) -> dict[str, float]:
    """Write fp32, int8 and int4 decoders and the weights; return the seconds of each."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from edgemm.export.graph import trace
    from edgemm.export.plans import DecoderShape, decoder_plan
    from edgemm.export.precision.int4 import quantize_int4
    from edgemm.export.precision.weights import quantize_weights
    from edgemm.export.store import GraphStore
    from edgemm.export.tracing import use_plain_attention
    from edgemm.export.wrappers import CausalDecoder

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=DIM,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    np.savez(work / "weights.npz", **{k: v.numpy() for k, v in model.state_dict().items()})
    use_plain_attention(model)
    shape = DecoderShape(LAYERS, HIDDEN, KV_HEADS, DIM, VOCABULARY, CONTEXT)
    start = time.perf_counter()
    graph = trace(decoder_plan(CausalDecoder(model.model, model.lm_head, LAYERS), shape))
    seconds = {"trace_s": time.perf_counter() - start}
    GraphStore(work / "fp32").write("decoder", graph)
    for precision, quantize in (("int8", quantize_weights), ("int4", quantize_int4)):
        start = time.perf_counter()
        GraphStore(work / precision).write("decoder", quantize(onnx.load(work / "fp32" / "graphs" / "decoder.onnx")))
        seconds[f"{precision}_s"] = time.perf_counter() - start
    return seconds


class ByHand:
    """The fast graph built from the weights, never traced: what the rewriter must reach.

    Blocks of int8 as MatMulNBits takes them, skip connections inside the norms, the last position picked before the
    head.
    """

    def __init__(self, weights: dict[str, np.ndarray], block: int) -> None:
        self.weights, self.block = weights, block
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str], domain: str = "com.microsoft", **more) -> str:
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **more))
        return outputs[0]

    def product(self, x: str, output: str, *names: str) -> str:
        weight = np.concatenate([self.weights[f"{n}.weight"] for n in names])
        width, inner = weight.shape
        blocks = -(-inner // self.block)
        grouped = np.pad(weight, ((0, 0), (0, blocks * self.block - inner))).reshape(width, blocks, self.block)
        scales = np.abs(grouped).max(-1, keepdims=True) / 127
        values = (np.rint(grouped / scales) + 128).astype(np.uint8)
        tensors = [self.constant(f"{output}.q", values), self.constant(f"{output}.s", scales.reshape(-1))]
        sizes = {"K": inner, "N": width, "bits": 8, "block_size": self.block, "accuracy_level": 4}
        return self.node("MatMulNBits", [x, *tensors], [output], **sizes)

    def layer(self, i: int, x: str, skip: str) -> tuple[str, str]:
        """Norm of the residual and the residual, in and out."""
        own, at = f"model.layers.{i}.", f"l{i}."
        qkv = self.product(x, at + "qkv", *(f"{own}self_attn.{p}_proj" for p in "qkv"))
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        mixed = self.node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_sequence_length", "cos", "sin"],
            [at + "mixed", f"present.{i}.key", f"present.{i}.value"],
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            do_rotary=1,
        )
        out = self.product(mixed, at + "out", own + "self_attn.o_proj")
        x, skip = self.norm(out, skip, own + "post_attention_layernorm", at + "a")
        self.product(x, at + "gate+up", own + "mlp.gate_proj", own + "mlp.up_proj")
        self.node("Split", [at + "gate+up"], [at + "gate", at + "up"], "", axis=-1, num_outputs=2)
        self.node("QuickGelu", [at + "gate"], [at + "silu"], alpha=1.0)
        self.node("Mul", [at + "silu", at + "up"], [at + "inner"], "")
        down = self.product(at + "inner", at + "down", own + "mlp.down_proj")
        following = f"model.layers.{i + 1}.input_layernorm" if i + 1 < LAYERS else "model.norm"
        return self.norm(down, skip, following, at + "m")

    def norm(self, x: str, skip: str, weight: str, at: str) -> tuple[str, str]:
        scale = self.constant(f"{at}.w", self.weights[f"{weight}.weight"])
        outputs = [f"{at}.normed", "", "", f"{at}.sum"]
        self.node("SkipSimplifiedLayerNormalization", [x, skip, scale], outputs, epsilon=EPSILON)
        return outputs[0], outputs[3]

    def model(self) -> onnx.ModelProto:
        angles = np.outer(np.arange(CAPACITY), THETA ** (-np.arange(0, DIM, 2) / DIM))
        self.constant("cos", np.cos(angles).astype(np.float32))
        self.constant("sin", np.sin(angles).astype(np.float32))
        first = self.constant("first.w", self.weights["model.layers.0.input_layernorm.weight"])
        about = {"axis": -1, "epsilon": EPSILON, "stash_type": 1}
        x, skip = (
            self.node("SimplifiedLayerNormalization", ["inputs_embeds", first], ["x0"], "", **about),
            "inputs_embeds",
        )
        for i in range(LAYERS):
            x, skip = self.layer(i, x, skip)
        picked = self.node("Gather", [x, "logits_indices"], ["picked"], "", axis=1)
        self.product(picked, "logits", "lm_head")
        buffer = [1, KV_HEADS, "buffer", DIM]
        floats = [("inputs_embeds", [1, "new", HIDDEN]), *((s.input, buffer) for s in STATES)]
        results = [("logits", [1, "picks", VOCABULARY]), *((s.output, buffer) for s in STATES)]
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in floats]
        inputs += [
            helper.make_tensor_value_info(n, TensorProto.INT32, [1]) for n in ("seqlens_k", "total_sequence_length")
        ]
        inputs.append(helper.make_tensor_value_info("logits_indices", TensorProto.INT64, ["picks"]))
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in results]
        graph = helper.make_graph(self.nodes, "by_hand", inputs, outputs, self.tensors)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


class ByHandDecoder:
    """Drives a graph of `ByHand` with pointers bound once: no more between two tokens than must be."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        shape = (1, KV_HEADS, CAPACITY, DIM)
        self.fixed = {s.input: np.zeros(shape, np.float32) for s in STATES}
        self.last, self.total = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self.fixed |= {"seqlens_k": self.last, "total_sequence_length": self.total}
        self.logits = np.zeros((1, 1, VOCABULARY), np.float32)
        self.one = np.zeros((1, 1, HIDDEN), np.float32)
        self.binding, self._kept = self.bind(self.one)
        self.length = 0

    def bind(self, embeds: np.ndarray):
        """A binding, and what must live as long."""
        binding = self.session.io_binding()
        feeds = {"inputs_embeds": embeds, "logits_indices": np.array([embeds.shape[1] - 1]), **self.fixed}
        for name, array in feeds.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in {"logits": self.logits, **{s.output: self.fixed[s.input] for s in STATES}}.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding, feeds

    def prefill(self, embeds: np.ndarray) -> np.ndarray:
        self.length += embeds.shape[1]
        self.last[0], self.total[0] = self.length - 1, self.length
        if embeds.shape[1] == 1:
            self.one[...] = embeds
            self.session.run_with_iobinding(self.binding)
        else:
            binding, _kept = self.bind(embeds)
            self.session.run_with_iobinding(binding)
        return self.logits

    def truncate(self, length: int) -> None:
        """Go on after `length` positions."""
        self.length = length


def contenders(work: Path, threads: int, wanted: list[str]) -> dict[str, Callable[[], object]]:
    """How each is loaded."""
    fast = SessionOptions(exact=False, threads=threads)
    stored_int8 = SessionOptions(exact=False, threads=threads, int8_weights=True)
    paths = {p: work / p / "graphs" / "decoder.onnx" for p in ("fp32", "int8", "int4")}

    def lowered(precision: str):
        decoder, reason = load_bound(paths[precision], STATES, CAPACITY, fast)
        if decoder is None:
            raise SystemExit(f"not lowered: {reason}")
        return decoder

    def portable(precision: str):
        options = fast if precision == "fp32" else stored_int8
        return OrtDecoder(OrtSession(paths[precision], options), STATES, CAPACITY)

    def on_openvino(precision: str, *, recognised: bool):
        from edgemm.runtimes import openvino

        def give_up(*_: object, **__: object) -> None:
            raise Unrecognised("as it is")

        lower, openvino.lower = openvino.lower, openvino.lower if recognised else give_up
        try:
            with tempfile.TemporaryDirectory() as folder, collecting(Path(folder)):
                return openvino.load_decoder(paths[precision], STATES, CAPACITY, fast)
        finally:
            openvino.lower = lower

    made = {
        "by_hand int8 block 32": lambda: ByHandDecoder(work / "by_hand_32.onnx", threads),
        "by_hand int8 block 128": lambda: ByHandDecoder(work / "by_hand_128.onnx", threads),
        "lowered int8": lambda: lowered("int8"),
        "portable int8": lambda: portable("int8"),
        "lowered int4": lambda: lowered("int4"),
        "portable int4": lambda: portable("int4"),
        "lowered fp32": lambda: lowered("fp32"),
        "portable fp32": lambda: portable("fp32"),
        "openvino lowered int8": lambda: on_openvino("int8", recognised=True),
        "openvino portable int8": lambda: on_openvino("int8", recognised=False),
    }
    return {k: v for k, v in made.items() if not wanted or k in wanted}


def prepare(work: Path) -> None:
    """Write everything that is not there yet; print how long it took."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "int4").exists():
        print(json.dumps(export_decoder(work)), flush=True)
    for block in (32, 128):
        path = work / f"by_hand_{block}.onnx"
        if not path.exists():
            with np.load(work / "weights.npz") as weights:
                model = ByHand(dict(weights), block).model()
            onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    for precision in ("fp32", "int8", "int4"):
        start = time.perf_counter()
        found = lowered_decoder(work / precision / "graphs" / "decoder.onnx", STATES, CAPACITY)
        print(f"lowering {precision}: {time.perf_counter() - start:.2f} s {found.reason}", flush=True)


def forced(decoder) -> np.ndarray:
    """Logits after a prompt of 100 and after `FORCED` random embeddings, [FORCED + 1, V]."""
    embeds = (np.random.default_rng(1).standard_normal((1, 100 + FORCED, HIDDEN)) * 0.02).astype(np.float32)
    decoder.truncate(0)
    rows = [decoder.prefill(embeds[:, :100]).reshape(-1).copy()]
    rows += [decoder.prefill(embeds[:, i : i + 1]).reshape(-1).copy() for i in range(100, 100 + FORCED)]
    return np.stack(rows)


def accuracy(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Print the least cosine and how often the largest logit is the same."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = (found * expected).sum(1) / norms
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    print(f"{name:24s} cosine ≥ {cosine.min():.5f}, argmax {same}/{len(found)}", flush=True)


def round_of(decoder) -> dict[str, list[float]]:
    """Milliseconds of one round: each prefill once, `STEPS` tokens after each past (the first two uncounted)."""
    rng = np.random.default_rng(2)
    times: dict[str, list[float]] = {}

    def timed(what: str, new: int) -> None:
        embeds = (rng.standard_normal((1, new, HIDDEN)) * 0.02).astype(np.float32)
        start = time.perf_counter()
        decoder.prefill(embeds)
        times.setdefault(what, []).append((time.perf_counter() - start) * 1e3)

    for new in PREFILLS:
        decoder.truncate(0)
        timed(f"p{new}", new)
    for past in sorted(PASTS, reverse=True):
        decoder.truncate(past)
        for _ in range(STEPS):
            timed(f"d@{past}", 1)
        del times[f"d@{past}"][:2]
    return times


def table(times: dict[str, dict[str, list[float]]]) -> None:
    """Print median/min of each, and the ratios to the first row."""
    columns = [f"p{n}" for n in PREFILLS] + [f"d@{n}" for n in PASTS]
    base = next(iter(times.values()))
    print("| | " + " | ".join(columns) + " |")
    for name, found in times.items():
        cells = []
        for column in columns:
            values, others = found[column], base[column]
            ratios = statistics.median(values) / statistics.median(others), min(values) / min(others)
            cells.append(f"{statistics.median(values):.2f}/{min(values):.2f} ({ratios[0]:.2f}/{ratios[1]:.2f})")
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Print accuracy against portable fp32, and times: median/min in ms (ratios of both to the first row)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--no-accuracy", action="store_true")
    arguments = parser.parse_args()
    prepare(arguments.work)
    decoders = {k: load() for k, load in contenders(arguments.work, arguments.threads, arguments.only).items()}
    if not arguments.no_accuracy:
        expected = forced(contenders(arguments.work, arguments.threads, ["portable fp32"])["portable fp32"]())
        for name, decoder in decoders.items():
            accuracy(name, forced(decoder), expected)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in decoders}
    for _ in range(arguments.rounds):
        for name, decoder in decoders.items():
            for what, values in round_of(decoder).items():
                times[name].setdefault(what, []).extend(values)
    table(times)


if __name__ == "__main__":
    main()

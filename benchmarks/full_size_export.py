"""Export a checkpoint of a published model's dimensions, with random weights: how long, and how much memory.

    python benchmarks/full_size_export.py smolvlm-256m --work /tmp/full --precision int8

The checkpoint is written once to --work. The export runs in a process of its own, whose peak memory is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    import torch

SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}:"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{part['text']}}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GIB = 1 << 30


def _tokenizer(vocabulary: int, specials: list[str]) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fill = [f"w{i}" for i in range(vocabulary - len(letters) - len(specials))]
    table = {token: i for i, token in enumerate([*letters, *fill])}
    tokenizer = Tokenizer(models.BPE(vocab=table, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return tokenizer


def smolvlm_256m(path: Path, layers: int = 30) -> None:
    """SmolVLM-256M: a ViT-B at 512 px, a decoder of 30 `layers`, untied as published."""
    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    grid = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    specials = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>", *grid]
    tokenizer = _tokenizer(49_280, specials)
    ids = {name: tokenizer.token_to_id(name) for name in specials}
    text = {
        "model_type": "llama", "vocab_size": 49_280, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": layers, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "max_position_embeddings": 8192, "rope_theta": 100_000.0, "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<end_of_utterance>"], "pad_token_id": ids["<|im_start|>"],
    }  # fmt: skip
    vision = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    config = SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=4, image_token_id=ids["<image>"], tie_word_embeddings=False
    )
    model = SmolVLMForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|im_start|>"], eos_token_id=ids["<end_of_utterance>"], pad_token_id=ids["<|im_start|>"]
    )
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    SmolVLMImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}).save_pretrained(path)
    (path / "chat_template.jinja").write_text(SMOLVLM_TEMPLATE)
    (path / "processor_config.json").write_text(json.dumps({"image_seq_len": 64}))


def qwen2_5_vl_3b(path: Path) -> None:
    """Qwen2.5-VL-3B in bf16: a windowed tower of 32 blocks, a decoder of 36 layers, tied as published.

    Written one weight at a time: the machine need not hold the model.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    tokenizer = _tokenizer(151_936, [*specials, "<|video_pad|>"])
    ids = {name: tokenizer.token_to_id(name) for name in (*specials, "<|video_pad|>")}
    ends = {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}
    text = {
        "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 128_000, **ends,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
        "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], architectures=["Qwen2_5_VLForConditionalGeneration"],
    )  # fmt: skip
    with torch.device("meta"):
        shapes = Qwen2_5_VLForConditionalGeneration(config).state_dict()
    published = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor.shape
        for name, tensor in shapes.items()
        if name != "lm_head.weight"
    }
    files: dict[str, str] = {}
    names = sorted(published)
    for number, start in enumerate(range(0, len(names), 100)):
        part = {name: _random(name, published[name]) for name in names[start : start + 100]}
        file = f"model-{number:05}.safetensors"
        save_file(part, path / file, {"format": "pt"})
        files |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    config.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps(ends))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 100_352}).save_pretrained(path)
    (path / "video_preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 3136, "longest_edge": 100_352}})
    )
    (path / "chat_template.jinja").write_text(QWEN_TEMPLATE)


def _random(name: str, shape: torch.Size) -> torch.Tensor:
    import torch

    scale, middle = (0.02, 1.0) if "norm" in name or "ln_q" in name else (0.02, 0.0)
    return (torch.randn(shape) * scale + middle).to(torch.bfloat16)


CHECKPOINTS = {"smolvlm-256m": smolvlm_256m, "qwen2.5-vl-3b": qwen2_5_vl_3b}


def _export(checkpoint: Path, target: Path, precision: str, calibrate_on: Path) -> None:
    from edgemm.export.pipeline import export

    steps: list[tuple[float, str]] = []
    report = export(
        checkpoint,
        target,
        precision=precision,  # type: ignore[arg-type]
        calibrate_on=[calibrate_on] if precision == "int8" else (),
        overwrite=True,
        progress=lambda what, _: (steps.append((time.perf_counter(), what)), print(what, file=sys.stderr)),
    )
    ends = [t for t, _ in steps[1:]] + [time.perf_counter()]
    result = {
        "seconds": round(report.seconds, 1),
        "peak_rss_gib": round(report.peak_rss_mb / 1024, 2),
        "checkpoint_fp32_gib": round(report.checkpoint_bytes_fp32 / GIB, 2),
        "bundle_gib": round(report.bytes / GIB, 3),
        "worst_parity": max(p.max_abs for p in report.manifest.checks.parity if p.precision == "fp32"),
        "layers_compared": report.manifest.checks.layers,
        "weights_equal": report.manifest.checks.weights_equal,
        "steps_s": {what: round(end - start, 1) for (start, what), end in zip(steps, ends, strict=True)},
    }
    print(json.dumps(result, indent=1))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=CHECKPOINTS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "int8"])
    parser.add_argument("--calib", type=Path, default=Path(__file__).parents[1] / "samples" / "clip")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    checkpoint = options.work / options.model
    if options.child:
        _export(checkpoint, options.work / f"{options.model}-{options.precision}", options.precision, options.calib)
        return
    if not (checkpoint / "config.json").is_file():
        checkpoint.mkdir(parents=True, exist_ok=True)
        CHECKPOINTS[options.model](checkpoint)
    sys.exit(subprocess.run([sys.executable, *sys.argv, "--child"], env=os.environ, check=False).returncode)


if __name__ == "__main__":
    main()

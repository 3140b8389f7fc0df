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

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}:"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{part['text']}}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
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


def smolvlm_256m(path: Path) -> None:
    """SmolVLM-256M: a ViT-B at 512 px, a decoder of 30 layers, untied as published."""
    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    grid = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    specials = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>", *grid]
    tokenizer = _tokenizer(49_280, specials)
    ids = {name: tokenizer.token_to_id(name) for name in specials}
    text = {
        "model_type": "llama", "vocab_size": 49_280, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
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


CHECKPOINTS = {"smolvlm-256m": smolvlm_256m}


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

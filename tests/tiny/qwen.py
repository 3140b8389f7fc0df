"""Tiny Qwen checkpoints: patch grids, windows, deep features, M-RoPE, sound in a chat."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.checkpoints import byte_level, widen
from tests.tiny.registry import Tiny

SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>",
]  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'audio' %}Audio: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH_PX = 4
LAYERS = 2
VIDEO = {"size": {"shortest_edge": 8 * 64, "longest_edge": 16 * 64}}
CLIP = {"size": {"shortest_edge": 24 * 64, "longest_edge": 80 * 64}}


def _tokenizer() -> tuple[Tokenizer, dict[str, int]]:
    tokenizer = byte_level(300, SPECIALS)
    return tokenizer, {name: tokenizer.token_to_id(name) for name in SPECIALS}


def _text(tokenizer: Tokenizer, ids: dict[str, int], **more: Any) -> dict[str, Any]:
    """A language model with grouped-query attention."""
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS + 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        **more,
    }


def _save(model: Any, path: Path, tokenizer: Tokenizer, ids: dict[str, int]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        # Random weights would end most answers after a few tokens.
        model.lm_head.weight[[ids["<|im_end|>"], ids["<|endoftext|>"]]] *= 0.5
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>").save_pretrained(path)
    (path / "chat_template.jinja").write_text(TEMPLATE)


def _vision(**more: Any) -> dict[str, Any]:
    return {
        "depth": LAYERS + 1, "num_heads": 2, "patch_size": PATCH_PX, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "in_channels": 3, **more,
    }  # fmt: skip


_QWEN2_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
_KINDS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "config": Qwen2VLConfig,
        "model": Qwen2VLForConditionalGeneration,
        "text": {"rope_parameters": _QWEN2_ROPE},
        "vision": {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        "video": VIDEO,
    },
    "qwen2_5_vl": {
        "config": Qwen2_5_VLConfig,
        "model": Qwen2_5_VLForConditionalGeneration,
        "text": {"rope_parameters": _QWEN2_ROPE},
        "vision": {
            "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "window_size": 16,
            "fullatt_block_indexes": [1], "tokens_per_second": 3,
        },
        "video": VIDEO,
    },
    "qwen3_vl": {
        "config": Qwen3VLConfig,
        "model": Qwen3VLForConditionalGeneration,
        "text": {
            "head_dim": 24,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 4, 4], "mrope_interleaved": True,
            },
        },
        "vision": {
            "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "num_position_embeddings": 25,
            "deepstack_visual_indexes": [0, 2],
        },
        "video": CLIP,
    },
}  # fmt: skip


def vision_language(path: Path, *, kind: str, tied: bool = False, seed: int = 0) -> Path:
    """Qwen2-VL, Qwen2.5-VL or Qwen3-VL with 4 px patches: 4 of them become a token of 8 px squared."""
    parts = _KINDS[kind]
    tokenizer, ids = _tokenizer()
    config = parts["config"](
        text_config=_text(tokenizer, ids, tie_word_embeddings=tied, **parts["text"]),
        vision_config=_vision(**parts["vision"]),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    model = parts["model"](config).eval()
    widen(model, seed, gain=2.0, table=0.6)
    _save(model, path, tokenizer, ids)
    sizes = {"shortest_edge": 4 * 64, "longest_edge": 40 * 64}
    Qwen2VLImageProcessorPil(size=sizes, patch_size=PATCH_PX, merge_size=2, temporal_patch_size=2).save_pretrained(path)
    (path / "video_preprocessor_config.json").write_text(json.dumps(parts["video"]))
    return path


def qwen2_audio(path: Path, *, tied: bool = False, seed: int = 0) -> Path:
    """Qwen2-Audio with windows of 8 s."""
    tokenizer, ids = _tokenizer()
    config = Qwen2AudioConfig(
        text_config={"model_type": "qwen2", "tie_word_embeddings": tied, **_text(tokenizer, ids)},
        audio_config={
            "model_type": "qwen2_audio_encoder", "num_mel_bins": 16, "d_model": 32, "encoder_layers": LAYERS,
            "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "max_source_positions": 400,
        },
        audio_token_index=ids["<|AUDIO|>"],
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = Qwen2AudioForConditionalGeneration(config).eval()
    widen(model, seed, gain=2.0, table=0.6)
    _save(model, path, tokenizer, ids)
    WhisperFeatureExtractor(feature_size=16, chunk_length=8).save_pretrained(path)
    return path


_VISION = ("vision_encoder", "decoder", "embed_tokens")
TINY = {
    "qwen2_vl": Tiny(partial(vision_language, kind="qwen2_vl"), _VISION),
    "qwen2_vl_tied": Tiny(partial(vision_language, kind="qwen2_vl", tied=True), _VISION),
    "qwen2_5_vl": Tiny(partial(vision_language, kind="qwen2_5_vl"), _VISION),
    "qwen3_vl": Tiny(partial(vision_language, kind="qwen3_vl", tied=True), _VISION),
    "qwen3_vl_untied": Tiny(partial(vision_language, kind="qwen3_vl"), _VISION),
    "qwen2_audio": Tiny(qwen2_audio, ("audio_encoder", "decoder", "embed_tokens")),
}

"""Tiny checkpoints with the structure of the real ones: random weights, real tokenizers, no network.

Weights are wider than a training start, so that greedy text is no loop; `fixtures` check that.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    LlamaConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

CORPUS = [
    "the quick brown fox jumps over the lazy dog while seven robots watch from the window",
    "what is in the picture? a red car, a blue door and two people who walk in the rain",
    "turn left at the kitchen, then stop and wait until the green light is on again",
    "größe, naïve café, it's 10:45 and the answer isn't known yet",
]
LANGUAGES = ("en", "de", "fr", "ja", "sw")
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for turn in messages %}{{ turn['role'] | capitalize }}"
    "{% if turn['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_TILE_PX = 32
_LAYERS = 2
_TIMES = 0.3


def byte_level(size: int, specials: list[str]) -> Tokenizer:
    """GPT-2's kind: byte-level BPE, `specials` after the words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    fill = [f"<|fill{i}|>" for i in range(size - tokenizer.get_vocab_size())]
    tokenizer.add_special_tokens([*fill, *specials])
    return tokenizer


def widen(model: nn.Module, seed: int, *, gain: float, table: float) -> None:
    """Draw every weight anew: matrices of variance gain²/fan-in, tables of `table`², norms near 1."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in module.named_parameters(recurse=False):
                noise = torch.randn(tensor.shape, generator=rng)
                if isinstance(module, nn.Embedding):
                    tensor.copy_(noise * table)
                elif tensor.ndim >= 2:
                    tensor.copy_(noise * gain / math.sqrt(tensor[0].numel()))
                elif name == "weight":
                    tensor.copy_(1 + 0.2 * noise)
                else:
                    tensor.copy_(0.2 * noise)


def _save(model: Any, path: Path, tokenizer: Tokenizer, generation: dict[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)


def whisper_specials(languages: tuple[str, ...], window_s: float) -> list[str]:
    """The special tokens of Whisper, in its order."""
    stamps = [f"<|{i * 0.02:.2f}|>" for i in range(round(window_s / 0.02) + 1)]
    return [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in languages),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
        *stamps,
    ]


def whisper_generation(tokenizer: Tokenizer, languages: tuple[str, ...], context: int) -> dict[str, Any]:
    """A generation configuration as the published checkpoints have it."""
    ids = tokenizer.token_to_id
    eos = ids("<|endoftext|>")
    config: dict[str, Any] = {
        "alignment_heads": [[1, 0], [1, 1]],
        "begin_suppress_tokens": [ids("Ġ"), eos],
        "bos_token_id": eos,
        "decoder_start_token_id": ids("<|startoftranscript|>"),
        "eos_token_id": eos,
        "is_multilingual": len(languages) > 1,
        "max_initial_timestamp_index": 50,
        "max_length": context,
        "no_timestamps_token_id": ids("<|notimestamps|>"),
        "pad_token_id": eos,
        "prev_sot_token_id": ids("<|startofprev|>"),
        "return_timestamps": False,
        "suppress_tokens": [
            1,
            2,
            7,
            8,
            9,
            10,
            14,
            25,
            *(ids("<|startoftranscript|>") + i for i in range(8)),
        ],
    }
    if len(languages) > 1:
        config["lang_to_id"] = {f"<|{code}|>": ids(f"<|{code}|>") for code in languages}
        config["task_to_id"] = {t: ids(f"<|{t}|>") for t in ("transcribe", "translate")}
        config["suppress_tokens"] = [
            1,
            2,
            7,
            8,
            9,
            10,
            14,
            25,
            ids("<|startofprev|>"),
            ids("<|nospeech|>"),
        ]
    return config


def whisper(path: Path, *, multilingual: bool = True, seed: int = 0) -> Path:
    """Whisper with 30 s windows (multilingual), or with 4 s windows (English-only)."""
    languages = LANGUAGES if multilingual else ("en",)
    positions, context = (1500, 96) if multilingual else (200, 80)
    tokenizer = byte_level(300, whisper_specials(languages, positions * 0.02))
    generation = whisper_generation(tokenizer, languages, context)
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        num_mel_bins=80 if multilingual else 40,
        encoder_layers=_LAYERS,
        encoder_attention_heads=2,
        decoder_layers=_LAYERS,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        d_model=32,
        max_source_positions=positions,
        max_target_positions=context,
        decoder_start_token_id=generation["decoder_start_token_id"],
        **{k: generation[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    model = WhisperForConditionalGeneration(config).eval()
    stem = model.model.encoder.embed_positions.weight.clone()
    widen(model, seed, gain=3.0, table=0.6)
    with torch.no_grad():
        model.model.encoder.embed_positions.weight.copy_(stem)
        # Each time token is unlikely, all of them together are not: as in a trained model.
        model.model.decoder.embed_tokens.weight[generation["no_timestamps_token_id"] + 1 :] *= _TIMES
    _save(model, path, tokenizer, generation)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=positions // 50).save_pretrained(path)
    return path


def moonshine(path: Path, *, seed: int = 0, hidden: int = 32) -> Path:
    """Moonshine with grouped-query attention off, as published, and a padded head dimension."""
    tokenizer = byte_level(300, [])
    config = MoonshineConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        encoder_num_hidden_layers=_LAYERS,
        decoder_num_hidden_layers=_LAYERS,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        pad_head_dim_to_multiple_of=8,
        max_position_embeddings=96,
    )
    model = MoonshineForConditionalGeneration(config).eval()
    widen(model, seed, gain=3.0, table=0.6)
    _save(
        model, path, tokenizer,
        {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "max_length": 96},
    )  # fmt: skip
    return path


def smolvlm(path: Path, *, tied: bool = False, seed: int = 0, longest_edge: int = 128) -> Path:
    """SmolVLM: 32 px tiles of 16 patches that the connector folds into 4 tokens; grouped-query attention."""
    names = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    specials = [
        "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>",
        "<global-img>", *names,
    ]  # fmt: skip
    tokenizer = byte_level(400, specials)
    ids = {name: tokenizer.token_to_id(name) for name in specials}
    text = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=ids["<|im_start|>"],
        eos_token_id=ids["<end_of_utterance>"],
        pad_token_id=ids["<|im_end|>"],
        tie_word_embeddings=tied,
    )
    vision = SmolVLMVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=_LAYERS,
        num_attention_heads=2,
        image_size=_TILE_PX,
        patch_size=8,
    )
    config = SmolVLMConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        image_token_id=ids["<image>"],
        scale_factor=2,
        tie_word_embeddings=tied,
    )
    model = SmolVLMForConditionalGeneration(config).eval()
    widen(model, seed, gain=3.0, table=0.6)
    _save(
        model, path, tokenizer,
        {
            "bos_token_id": ids["<|im_start|>"],
            "eos_token_id": ids["<end_of_utterance>"],
            "pad_token_id": ids["<|im_end|>"],
        },
    )  # fmt: skip
    (path / "chat_template.jinja").write_text(SMOLVLM_TEMPLATE)
    SmolVLMImageProcessorPil(
        size={"longest_edge": longest_edge},
        max_image_size={"longest_edge": _TILE_PX},
        do_image_splitting=True,
    ).save_pretrained(path)
    return path


def efficientnet_lite0(path: Path, *, classes: int = 10, seed: int = 0) -> Path:
    """EfficientNet-lite0 under its published names, random, 64 px pictures."""
    from edgemm.export.families.efficientnet_lite0 import EfficientNetLite0

    network = EfficientNetLite0(classes)
    widen(network, seed, gain=1.5, table=1.0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                rng = torch.Generator().manual_seed(seed)
                module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=rng))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=rng))
    path.mkdir(parents=True, exist_ok=True)
    save_file(_published(network.state_dict()), path / "model.safetensors")
    labels = {str(i): f"class {i}" for i in range(classes)}
    config = {
        "model_type": "efficientnet-lite0", "num_labels": classes, "image_size": 64, "id2label": labels,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    processor = {
        "size": {"shortest_edge": 72},
        "crop_size": {"height": 64, "width": 64},
        "do_center_crop": True,
        "do_rescale": False,
        "image_mean": [127.0] * 3,
        "image_std": [128.0] * 3,
        "resample": 2,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def _published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    outer = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    inner = {
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
    }
    named = {}
    for name, tensor in state.items():
        part = name.split(".")
        if part[0] == "classifier":
            named[f"_fc.{part[1]}"] = tensor
        elif part[0] == "blocks":
            layer = inner[part[2]][part[3] == "norm"]
            named[f"_blocks.{part[1]}.{layer}.{part[4]}"] = tensor
        else:
            named[f"{outer[part[0]][part[1] == 'norm']}.{part[2]}"] = tensor
    return {k: v.contiguous() for k, v in named.items()}

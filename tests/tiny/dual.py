"""Tiny paired encoders: pictures and texts (CLIP, SigLIP, SigLIP 2 with NaFlex), sound and texts (CLAP)."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from tests.checkpoints import byte_level, widen
from tests.tiny.registry import Tiny

_SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXTS = 24
_MEL_SAMPLES_S = 2


def _words(before: str | None, after: str, pad: str, specials: list[str]) -> Tokenizer:
    """Byte-level BPE that puts `before` and `after` around every text."""
    tokenizer = byte_level(300, specials)
    ids = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([before or after, after, pad])]
    single = f"{before} $A {after}" if before else f"$A {after}"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def _save(model: Any, path: Path, tokenizer: Tokenizer, pad: str, longest: int, processor: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, model_max_length=longest)
    fast.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def _scored(model: Any, names: tuple[str, ...] = ("logit_scale",)) -> Any:
    """Trained models are this sure of themselves."""
    with torch.no_grad():
        for name in names:
            getattr(model, name).fill_(math.log(10.0))
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-1.0)
    return model


def clip(path: Path, *, legacy: bool = False, seed: int = 0) -> Path:
    """CLIP; `legacy` as the first checkpoints are, with a wrong end token in the configuration."""
    pad = "<|endoftext|>"
    tokenizer = _words("<|startoftext|>", pad, pad, ["<|startoftext|>", pad])
    end = tokenizer.token_to_id(pad)
    text = {
        **_SIZE,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": _TEXTS,
        "bos_token_id": end - 1,
        "eos_token_id": 2 if legacy else end,
        "pad_token_id": end,
    }
    vision = {**_SIZE, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    widen(model, seed, gain=1.0, table=0.6)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    return _save(_scored(model), path, tokenizer, pad, _TEXTS, processor)


def siglip(path: Path, *, seed: int = 0) -> Path:
    """SigLIP at a fixed size; texts are padded with their end token."""
    tokenizer = _words(None, "</s>", "</s>", ["</s>"])
    text = {**_SIZE, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": _TEXTS}
    vision = {**_SIZE, "image_size": 32, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    widen(model, seed, gain=1.0, table=0.6)
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return _save(_scored(model), path, tokenizer, "</s>", _TEXTS, processor)


def siglip2(path: Path, *, seed: int = 0) -> Path:
    """SigLIP 2 with NaFlex: at most 24 patches, a table of 4 × 4 positions."""
    tokenizer = _words(None, "<eos>", "<pad>", ["<pad>", "<eos>"])
    text = {**_SIZE, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": _TEXTS}
    vision = {**_SIZE, "num_patches": 16, "patch_size": 8}
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).eval()
    widen(model, seed, gain=1.0, table=0.6)
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=24)
    return _save(_scored(model), path, tokenizer, "<pad>", _TEXTS, processor)


def clap(path: Path, *, fused: bool = False, seed: int = 0) -> Path:
    """CLAP: 2 s of sound at 48 kHz, a Swin tower of two stages, a RoBERTa for texts."""
    tokenizer = _words("<s>", "</s>", "<pad>", ["<s>", "<pad>", "</s>"])
    size = tokenizer.get_vocab_size()
    text = {
        **_SIZE,
        "vocab_size": size,
        "max_position_embeddings": size + _TEXTS,
        "pad_token_id": tokenizer.token_to_id("<pad>"),
        "projection_hidden_size": 24,
    }
    audio = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "window_size": 4,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "hidden_size": 32,
        "patch_embeds_hidden_size": 16,
        "depths": [2, 2],
        "num_attention_heads": [2, 4],
        "enable_fusion": fused,
        "projection_hidden_size": 24,
    }
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24)).eval()
    widen(model, seed, gain=1.0, table=0.6)
    norm = model.audio_model.audio_encoder.batch_norm
    with torch.no_grad():
        norm.running_mean.fill_(-40.0)
        norm.running_var.fill_(400.0)
    processor = ClapFeatureExtractor(
        feature_size=16, max_length_s=_MEL_SAMPLES_S, frequency_min=50, truncation="fusion" if fused else "rand_trunc"
    )
    _scored(model, ("logit_scale_a", "logit_scale_t"))
    return _save(model, path, tokenizer, "<pad>", _TEXTS, processor)


def settings(path: Path, **changes: Any) -> None:
    """Change the tokenizer's settings."""
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


_PICTURES = ("vision_encoder", "text_encoder")
TINY: dict[str, Tiny] = {
    "clip": Tiny(clip, _PICTURES),
    "clip_legacy": Tiny(partial(clip, legacy=True), _PICTURES),
    "siglip": Tiny(siglip, _PICTURES),
    "siglip2": Tiny(siglip2, _PICTURES),
    "clap": Tiny(clap, ("audio_encoder", "text_encoder")),
}

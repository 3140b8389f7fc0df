"""Tiny taggers of pictures, clips and sound, and tiny speech encoders with a CTC head."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    HubertConfig,
    HubertForCTC,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.checkpoints import widen
from tests.tiny.registry import Tiny

_CLASSES = 7
_SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_LABELS = {
    "id2label": {i: f"class {i}" for i in range(_CLASSES)},
    "label2id": {f"class {i}": i for i in range(_CLASSES)},
}
_LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"etaonihsrdlu'"]


def _save(model: Any, path: Path, processor: Any, *, seed: int, gain: float = 1.0) -> Path:
    widen(model, seed, gain=gain, table=0.6)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=rng))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=rng))
    path.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(path)
    processor.save_pretrained(path)
    return path


def vit(path: Path, *, several: bool = False) -> Path:
    """ViT; `several` labels may hold at once."""
    problem = {"problem_type": "multi_label_classification"} if several else {}
    config = ViTConfig(**_SIZE, **_LABELS, image_size=32, patch_size=8, **problem)
    return _save(
        ViTForImageClassification(config),
        path,
        ViTImageProcessorPil(size={"height": 32, "width": 32}),
        seed=1,
        gain=2.0,
    )


def dinov2(path: Path, *, head: bool = True) -> Path:
    """DINOv2, trained at a larger size than its pictures have, as the published ones are."""
    size = {k: v for k, v in _SIZE.items() if k != "intermediate_size"}
    config = Dinov2Config(**size, **_LABELS, mlp_ratio=2, image_size=56, patch_size=8)
    model = Dinov2ForImageClassification(config) if head else Dinov2Model(config)
    processor = BitImageProcessorPil(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32})
    return _save(model, path, processor, seed=2, gain=2.0)


def convnext(path: Path) -> Path:
    """ConvNeXt of two stages."""
    config = ConvNextConfig(**_LABELS, hidden_sizes=[16, 32], depths=[1, 2], num_stages=2, image_size=32)
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.9)
    return _save(ConvNextForImageClassification(config), path, processor, seed=3, gain=1.5)


def efficientnet(path: Path) -> Path:
    """EfficientNet of three stages, with squeeze-and-excitation."""
    config = EfficientNetConfig(
        **_LABELS,
        image_size=33,
        width_coefficient=0.5,
        depth_coefficient=0.5,
        kernel_sizes=[3, 5, 3],
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        strides=[1, 2, 2],
        num_block_repeats=[1, 2, 1],
        expand_ratios=[1, 6, 6],
        depthwise_padding=[],
        hidden_dim=640,
    )
    processor = EfficientNetImageProcessorPil(size={"height": 33, "width": 33})
    return _save(EfficientNetForImageClassification(config), path, processor, seed=6, gain=1.5)


def videomae(path: Path) -> Path:
    """VideoMAE over four frames."""
    config = VideoMAEConfig(**_SIZE, **_LABELS, image_size=32, patch_size=8, num_frames=4, tubelet_size=2)
    processor = VideoMAEImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _save(VideoMAEForVideoClassification(config), path, processor, seed=5)


def ast(path: Path) -> Path:
    """AST over 96 frames (1 s) of 32 bands; several labels may hold at once."""
    config = ASTConfig(
        **_SIZE,
        **_LABELS,
        patch_size=16,
        frequency_stride=10,
        time_stride=10,
        max_length=96,
        num_mel_bins=32,
        problem_type="multi_label_classification",
    )
    processor = ASTFeatureExtractor(num_mel_bins=32, max_length=96)
    return _save(ASTForAudioClassification(config), path, processor, seed=6)


def ctc(path: Path, kind: str, *, norm: str = "group", seed: int = 7) -> Path:
    """wav2vec 2.0 or HuBERT; `norm` "layer" is the larger checkpoints' form, with biases and normalised layers."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(_LETTERS)}))
    Wav2Vec2CTCTokenizer(path / "vocab.json", do_lower_case=norm == "layer").save_pretrained(path)
    config, cls = {"wav2vec2": (Wav2Vec2Config, Wav2Vec2ForCTC), "hubert": (HubertConfig, HubertForCTC)}[kind]
    options = {
        **_SIZE,
        "vocab_size": len(_LETTERS),
        "pad_token_id": 0,
        "feat_extract_norm": norm,
        "conv_bias": norm == "layer",
        "do_stable_layer_norm": norm == "layer",
        "conv_dim": (16, 16, 32),
        "conv_kernel": (10, 3, 3),
        "conv_stride": (5, 4, 4),
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    processor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=norm == "layer")
    return _save(cls(config(**options)), path, processor, seed=seed, gain=2.0)


TINY: dict[str, Tiny] = {
    "vit": Tiny(vit, ("model",)),
    "vit_several": Tiny(partial(vit, several=True), ("model",)),
    "dinov2": Tiny(dinov2, ("model",)),
    "dinov2_features": Tiny(partial(dinov2, head=False), ("vision_encoder",)),
    "convnext": Tiny(convnext, ("model",)),
    "efficientnet_b": Tiny(efficientnet, ("model",)),
    "videomae": Tiny(videomae, ("model",)),
    "ast": Tiny(ast, ("model",)),
    "wav2vec2": Tiny(partial(ctc, kind="wav2vec2"), ("model",)),
    "wav2vec2_layer": Tiny(partial(ctc, kind="wav2vec2", norm="layer"), ("model",)),
    "hubert": Tiny(partial(ctc, kind="hubert", seed=8), ("model",)),
}

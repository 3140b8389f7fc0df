"""Tiny detectors: random ones with the structure of the real, and one that was trained on coloured squares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForObjectDetection,
    DetrConfig,
    DFineConfig,
    HGNetV2Config,
    PreTrainedConfig,
    ResNetConfig,
    RTDetrConfig,
    RTDetrResNetConfig,
    RTDetrV2Config,
    YolosConfig,
)
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

from tests.checkpoints import widen
from tests.tiny.registry import Tiny

LABELS = ("red", "green", "blue")
SIDE_PX = 64
_WIDTH, _WIDE = 32, 48
_COLOURS = np.array([[200, 40, 40], [40, 180, 60], [50, 70, 210]])
_STEPS, _BATCH, _RATE = 250, 16, 4e-3
_CHANNELS = [16, 16, 24]
_LABELS = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}


def detr_config(**changes: Any) -> DetrConfig:
    """DETR with a ResNet of four stages: stride 32."""
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, *_CHANNELS], depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    values = {
        "backbone_config": backbone, "use_timm_backbone": False, "num_queries": 7, "d_model": _WIDTH,
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": _WIDE, "decoder_ffn_dim": _WIDE,
    }  # fmt: skip
    return DetrConfig(**values | _LABELS | changes)


def _top_k(cls: type[PreTrainedConfig], backbone: PreTrainedConfig, **changes: Any) -> PreTrainedConfig:
    values = {
        "backbone_config": backbone, "encoder_hidden_dim": _WIDTH, "encoder_in_channels": _CHANNELS,
        "encoder_ffn_dim": _WIDE, "encoder_attention_heads": 2, "d_model": _WIDTH, "num_queries": 12,
        "decoder_in_channels": [_WIDTH] * 3, "decoder_ffn_dim": _WIDE, "decoder_layers": 2,
        "decoder_attention_heads": 2, "num_denoising": 0,
    }  # fmt: skip
    return cls(**values | _LABELS | changes)


def rt_detr_config(cls: type[PreTrainedConfig] = RTDetrConfig, **changes: Any) -> PreTrainedConfig:
    """RT-DETR (or v2) with its ResNet-D: strides 8, 16 and 32."""
    stages = ["stage2", "stage3", "stage4"]
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, *_CHANNELS], depths=[1] * 4, layer_type="basic", out_features=stages
    )
    return _top_k(cls, backbone, **changes)


def d_fine_config(**changes: Any) -> PreTrainedConfig:
    """D-FINE with its HGNet v2: strides 8, 16 and 32."""
    out = [16, *_CHANNELS]
    backbone = HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, *out[:3]], stage_mid_channels=[8] * 4, stage_out_channels=out,
        stage_num_blocks=[1] * 4, stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True], stage_kernel_size=[3, 3, 5, 5], stage_numb_of_layers=[2] * 4,
        embedding_size=8, hidden_sizes=out, depths=[1] * 4, out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return _top_k(DFineConfig, backbone, **changes)


def yolos_config(**changes: Any) -> YolosConfig:
    """YOLOS with a table of 4 x 6 positions."""
    values = {
        "hidden_size": _WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": _WIDE,
        "image_size": [64, 96], "patch_size": 16, "num_detection_tokens": 9,
    }  # fmt: skip
    return YolosConfig(**values | _LABELS | changes)


_EDGES = {"size": {"shortest_edge": 40, "longest_edge": 61}}
_SQUARE = {"size": {"height": SIDE_PX, "width": SIDE_PX}}


def _build(make: Any, processor: Any, path: Path, *, gain: float = 1.5, seed: int = 0) -> Path:
    model = AutoModelForObjectDetection.from_config(make()).eval()
    # Wide class heads: the scores of two places are never equal, so that every runtime picks the same ones.
    widen(model, seed, gain=gain, table=0.6)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("cls_token", "detection_tokens", "position_embeddings")):
                tensor.normal_(0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    _settle_norms(model, seed)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def _settle_norms(model: torch.nn.Module, seed: int) -> None:
    """Running statistics that are not those of a start, frozen ones included."""
    rng = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "running_var") and module.running_var is not None:
            module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=rng))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=rng))


def detr(path: Path) -> Path:
    """Sine positions, a canvas of 64 px for edges of at most 61."""
    return _build(detr_config, DetrImageProcessorPil(**_EDGES), path)


def detr_learned(path: Path) -> Path:
    """Learned positions."""
    return _build(lambda: detr_config(position_embedding_type="learned"), DetrImageProcessorPil(**_EDGES), path)


def rt_detr(path: Path) -> Path:
    """Queries from the encoder's own states."""
    return _build(rt_detr_config, RTDetrImageProcessorPil(**_SQUARE), path)


def rt_detr_v2(path: Path) -> Path:
    """Bilinear sampling, as published."""
    return _build(lambda: rt_detr_config(RTDetrV2Config), RTDetrImageProcessorPil(**_SQUARE), path)


def d_fine(path: Path) -> Path:
    """Edges as distributions."""
    return _build(d_fine_config, RTDetrImageProcessorPil(**_SQUARE), path, gain=1.0)


def yolos(path: Path) -> Path:
    """Positions between all layers."""
    return _build(yolos_config, YolosImageProcessorPil(**_EDGES), path)


def yolos_plain(path: Path) -> Path:
    """Positions at the start alone, as the small published ones have it."""
    return _build(lambda: yolos_config(use_mid_position_embeddings=False), YolosImageProcessorPil(**_EDGES), path)


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, uint8 [64, 64, 3], with one or two coloured squares: corners in pixels, and places in `LABELS`."""

    image: NDArray[np.uint8]
    boxes: tuple[tuple[float, float, float, float], ...]
    labels: tuple[int, ...]


def scene(rng: np.random.Generator) -> Scene:
    """Squares of 24 or 32 px on a grid of 8 px, apart from each other, over noise."""
    image = rng.normal(110, 12, (SIDE_PX, SIDE_PX, 3))
    boxes: list[tuple[int, int, int, int]] = []
    labels = []
    for _ in range(int(rng.integers(1, 3))):
        side = 8 * int(rng.integers(3, 5))
        top, left = (8 * int(n) for n in rng.integers(0, (SIDE_PX - side) // 8 + 1, 2))
        box = (left, top, left + side, top + side)
        if any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in boxes):
            continue
        boxes.append(box)
        labels.append(int(rng.integers(len(LABELS))))
        image[top : top + side, left : left + side] = _COLOURS[labels[-1]] + rng.normal(0, 10, (side, side, 3))
    corners = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in boxes)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), corners, tuple(labels))


def _batch(rng: np.random.Generator, n: int) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    scenes = [scene(rng) for _ in range(n)]
    corners = [torch.tensor(s.boxes) / SIDE_PX for s in scenes]
    targets = [
        {
            "class_labels": torch.tensor(s.labels),
            "boxes": torch.cat([(c[:, :2] + c[:, 2:]) / 2, c[:, 2:] - c[:, :2]], 1),
        }
        for s, c in zip(scenes, corners, strict=True)
    ]
    pixels = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2).float() / 255
    return pixels, targets


def rt_detr_trained(path: Path) -> Path:
    """RT-DETR that finds coloured squares, after 250 steps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = rt_detr_config(num_queries=6, freeze_backbone_batch_norms=False, dropout=0.0, auxiliary_loss=True)
        model = AutoModelForObjectDetection.from_config(config).train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(module.weight)
        with torch.no_grad():
            # Anchors begin at the size of small objects; these are large.
            model.model.enc_bbox_head.layers[-1].bias[2:] = 1.5
        _train(model, _STEPS)
    model.eval().save_pretrained(path)
    RTDetrImageProcessorPil(**_SQUARE).save_pretrained(path)
    return path


def _train(model: Any, steps: int) -> None:
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.15)
    for _ in range(steps):
        pixels, targets = _batch(rng, _BATCH)
        optimizer.zero_grad()
        model(pixels, labels=targets).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


TINY = {
    build.__name__: Tiny(build, ("model",))
    for build in (detr, detr_learned, rt_detr, rt_detr_trained, rt_detr_v2, d_fine, yolos, yolos_plain)
}

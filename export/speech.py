"""What the speech families share: their encoder graphs and their spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgemm.bundle.spec import LogMelSpec
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import GraphPlan, Port, Sizes, Treatment
from edgemm.export.plans import BATCH, DecoderShape
from edgemm.export.wrappers import AudioEncoderWithCross, CrossProjection, layered_names


def audio_encoder_plan(
    encoder: nn.Module,
    projections: Sequence[tuple[nn.Module, nn.Module]],
    shape: DecoderShape,
    sound: Port,
    ranges: dict[str, tuple[int, int, int]],
    sizes: tuple[Sizes, ...],
    treatment: Treatment = "static",
) -> GraphPlan:
    """`audio_encoder`: sound → audio_features [B, T', D] and cross.* [B, H, T', D/H]. `sizes[0]` is traced."""
    cross = CrossProjection(projections, shape.cross_heads)
    dims = ("batch", shape.cross_heads, "source", shape.head_dim)
    return GraphPlan(
        role="audio_encoder",
        module=AudioEncoderWithCross(encoder, cross, sound.name),
        inputs=(sound,),
        outputs=(
            Port("audio_features", torch.float32, ("batch", "source", shape.hidden)),
            *(Port(name, torch.float32, dims) for name in layered_names("cross", shape.layers)),
        ),
        ranges={
            "batch": BATCH,
            "source": (1, min(400, shape.cross_max), shape.cross_max),
            **ranges,
        },
        trace=sizes[0],
        checks=sizes[1:],
        treatment=treatment,
        # Over raw sound the stem's activations have outliers of 200 times the mean: int8 of either side is heard.
        half_ops=("Conv",),
    )


def log_mel_spec(checkpoint: Checkpoint, config: Any) -> LogMelSpec:
    """The spectrogram of a Whisper-like encoder, whose configuration is `config`."""
    inside = checkpoint.json("processor_config.json").get("feature_extractor", {})
    extractor = checkpoint.json("preprocessor_config.json") or inside
    rate = int(extractor.get("sampling_rate", 16_000))
    hop = int(extractor.get("hop_length", 160))
    return LogMelSpec(
        sample_rate_hz=rate,
        n_mels=config.num_mel_bins,
        n_fft=int(extractor.get("n_fft", 400)),
        hop=hop,
        chunk_s=2 * config.max_source_positions * hop / rate,
    )

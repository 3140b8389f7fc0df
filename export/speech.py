"""What the speech families share: their encoder graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

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

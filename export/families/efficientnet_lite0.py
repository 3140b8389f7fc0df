"""EfficientNet-lite0: a picture → 1,000 classes.

The network of Tan and Le (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6, as published for mobile
processors. Convolutions pad as TensorFlow does ("same", the odd pixel after), which the weights were trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgemm.bundle.manifest import Processing
from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import Feeds, GraphPlan, Port
from edgemm.export.image_spec import image_spec
from edgemm.export.model_plan import Example, ModelPlan, Reference
from edgemm.export.plans import BATCH

MODEL_TYPE = "efficientnet-lite0"
TASKS = ("classify",)
NEEDS: Mapping[str, tuple[str, ...]] = {"picture network": ("_conv_stem.", "_blocks.", "_fc.")}

# (repeats, kernel, first stride, expansion, channels in, channels out)
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class SameConv(nn.Module):
    """Convolution, batch norm and, if asked, ReLU6, with TensorFlow's "same" padding."""

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*channels, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels[1], eps=1e-3)
        before = (kernel - stride) // 2 if stride < kernel else 0
        self.pad = nn.ZeroPad2d((before, kernel - stride - before) * 2) if kernel > 1 else nn.Identity()
        self.act = nn.ReLU6() if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W], with H and W multiples of the stride."""
        y: torch.Tensor = self.act(self.norm(self.conv(self.pad(x))))
        return y

    def fuse(self) -> None:
        """Fold the batch norm into the convolution."""
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project."""

    def __init__(self, kernel: int, stride: int, expansion: int, c_in: int, c_out: int) -> None:
        super().__init__()
        wide = c_in * expansion
        self.expand = SameConv((c_in, wide), 1) if expansion > 1 else None
        self.depthwise = SameConv((wide, wide), kernel, stride, groups=wide)
        self.project = SameConv((wide, c_out), 1, act=False)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, c_in, H, W] → [B, c_out, H/stride, W/stride]."""
        y = self.expand(x) if self.expand is not None else x
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """pixel_values [B, 3, 224, 224] → logits [B, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = SameConv((3, 32), 3, 2)
        self.blocks = nn.Sequential(
            *(
                Block(kernel, stride if i == 0 else 1, expansion, c_in if i == 0 else c_out, c_out)
                for repeats, kernel, stride, expansion, c_in, c_out in _STAGES
                for i in range(repeats)
            )
        )
        self.head = SameConv((320, 1280), 1)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """The graph contract's `model`: named tensors in, logits out."""
        x = self.head(self.blocks(self.stem(feeds["pixel_values"])))
        return (self.classifier(x.mean((2, 3))),)


def _renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published names → this module's."""
    norms = {"0": "expand", "1": "depthwise", "2": "project"}
    names = {}
    for name in tensors:
        part = name.split(".")
        if part[0] == "_blocks":
            index, layer, leaf = part[1], part[2], part[3]
            if layer.startswith("_bn"):
                here = norms[layer[3]]
                names[name] = f"blocks.{index}.{here}.norm.{leaf}"
            else:
                names[name] = f"blocks.{index}.{layer[1:].removesuffix('_conv')}.conv.{leaf}"
        elif part[0] == "_fc":
            names[name] = f"classifier.{part[1]}"
        else:
            kind = "norm" if part[0].startswith("_bn") else "conv"
            here = {"_conv_stem": "stem", "_bn0": "stem", "_conv_head": "head", "_bn1": "head"}[part[0]]
            names[name] = f"{here}.{kind}.{part[1]}"
    return {names[k]: v.float() for k, v in tensors.items()}


def load(checkpoint: Checkpoint) -> EfficientNetLite0:
    """The network with the checkpoint's weights, in fp32, batch norms still apart."""
    network = EfficientNetLite0(int(checkpoint.config.get("num_labels", 1000)))
    tensors: dict[str, torch.Tensor] = {}
    for file in checkpoint.weight_files:
        tensors |= load_file(file)
    try:
        missing, unexpected = network.load_state_dict(_renamed(tensors), strict=False)
    except (KeyError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.path} is no EfficientNet-lite0: {error}") from error
    absent = [m for m in missing if not m.endswith("num_batches_tracked")]
    if absent or unexpected:
        raise CheckpointError(f"{checkpoint.path} is no EfficientNet-lite0: {(absent + unexpected)[0]} does not fit")
    network.eval()
    return network


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: pixel_values → logits."""
    original = load(checkpoint)
    network = load(checkpoint)
    for module in network.modules():
        if isinstance(module, SameConv):
            module.fuse()
    size = int(checkpoint.config.get("image_size", 224))
    labels = checkpoint.config.get("id2label", {})
    spec = image_spec(checkpoint.json("preprocessor_config.json"), size)
    classes = network.classifier.out_features
    graph = GraphPlan(
        role="model",
        module=network,
        inputs=(Port("pixel_values", torch.float32, ("batch", 3, size, size)),),
        outputs=(Port("logits", torch.float32, ("batch", classes)),),
        ranges={"batch": BATCH},
        trace={"batch": 2},
        checks=({"batch": 1}, {"batch": 3}),
    )

    def feeds(example: Example) -> dict[str, dict[str, NDArray[Any]]]:
        from edgemm.processing.image import preprocess

        if example.image is None:
            return {}
        return {"model": {"pixel_values": preprocess(example.image, spec).pixel_values}}

    def reference(example: Example) -> Reference:
        inputs = {k: torch.from_numpy(v) for k, v in feeds(example)["model"].items()}
        with torch.no_grad():
            (logits,) = original(inputs)
        return Reference(probabilities=logits.softmax(-1)[0].numpy())

    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=(graph,),
        processing=Processing(image=spec),
        labels=tuple(str(labels.get(str(i), i)) for i in range(classes)),
        feeds=feeds,
        reference=reference,
    )

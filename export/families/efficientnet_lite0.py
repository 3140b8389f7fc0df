"""EfficientNet-lite0: a picture → 1,000 classes.

The network of Tan and Le (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6, as published for mobile
processors. Convolutions pad as TensorFlow does ("same", the odd pixel after), which the weights were trained with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import PreTrainedConfig
from transformers.modeling_outputs import ImageClassifierOutput

from edgemm.bundle.manifest import Processing
from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint, find_checkpoint
from edgemm.export.graph import Feeds, GraphPlan, Port
from edgemm.export.image_spec import image_spec
from edgemm.export.model_plan import Example, ModelPlan, Original, Reference
from edgemm.export.plans import BATCH

MODEL_TYPE = "efficientnet-lite0"
TASKS = ("classify",)
NEEDS: Mapping[str, tuple[str, ...]] = {"picture network": ("_conv_stem.", "_blocks.", "_fc.")}

_COUNTS = "num_batches_tracked"  # of batch norms: nothing that is published

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


_OUTER = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
_INNER = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def published(name: str) -> str:
    """This network's name of a tensor → the one in checkpoints."""
    part = name.split(".")
    leaf = part[-1]
    if part[0] == "classifier":
        return f"_fc.{leaf}"
    if part[0] == "blocks":
        return f"_blocks.{part[1]}.{_INNER[part[2]][part[3] == 'norm']}.{leaf}"
    return f"{_OUTER[part[0]][part[1] == 'norm']}.{leaf}"


def load(checkpoint: Checkpoint) -> EfficientNetLite0:
    """The network with the checkpoint's weights, in fp32, batch norms still apart."""
    network = EfficientNetLite0(int(checkpoint.config.get("num_labels", 1000)))
    tensors: dict[str, torch.Tensor] = {}
    for file in checkpoint.weight_files:
        tensors |= load_file(file)
    own = {published(name): name for name in network.state_dict()}
    try:
        missing, unexpected = network.load_state_dict({own[k]: v.float() for k, v in tensors.items()}, strict=False)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.path} is no EfficientNet-lite0: {error}") from error
    absent = [m for m in missing if not m.endswith(_COUNTS)]
    if absent or unexpected:
        raise CheckpointError(f"{checkpoint.path} is no EfficientNet-lite0: {(absent + unexpected)[0]} does not fit")
    network.eval()
    return network


class EfficientNetLite0Config(PreTrainedConfig):
    """config.json: `num_labels`, `image_size`, `id2label`."""

    model_type = MODEL_TYPE


class EfficientNetLite0ForImageClassification(nn.Module):
    """The network as it is trained: called, saved and loaded as transformers' own classifiers are."""

    def __init__(self, config: EfficientNetLite0Config) -> None:
        super().__init__()
        self.config = config
        self.network = EfficientNetLite0(config.num_labels)

    @classmethod
    def from_pretrained(
        cls, path: Path | str, *, config: EfficientNetLite0Config | None = None, **_settings: Any
    ) -> EfficientNetLite0ForImageClassification:
        """A checkpoint's network in fp32; the head is drawn anew where `config` has another number of labels.

        Raises CheckpointError where the weights are another network's.
        """
        checkpoint = find_checkpoint(path)
        network = load(checkpoint)
        made = cls(config or _config_of(checkpoint, network.classifier.out_features))
        if made.network.classifier.out_features != network.classifier.out_features:
            network.classifier = made.network.classifier
        made.network = network
        made.eval()
        return made

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.network.classifier.weight.device

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        """pixel_values [B, 3, H, W], labels [B] → logits [B, classes] and, with labels, their cross entropy."""
        (logits,) = self.network({"pixel_values": pixel_values})
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def save_pretrained(self, directory: Path | str) -> None:
        """Write config.json and the weights under their published names."""
        kept = {published(n): t for n, t in self.network.state_dict().items() if not n.endswith(_COUNTS)}
        self.config.architectures, self.config.dtype = [type(self.network).__name__], "float32"
        self.config.save_pretrained(directory)
        # transformers leaves the number out where the names tell it.
        config = json.loads((Path(directory) / "config.json").read_text()) | {"num_labels": self.config.num_labels}
        (Path(directory) / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n")
        save_file({n: t.contiguous() for n, t in kept.items()}, Path(directory) / "model.safetensors")


def _config_of(checkpoint: Checkpoint, classes: int) -> EfficientNetLite0Config:
    config: EfficientNetLite0Config = EfficientNetLite0Config.from_pretrained(checkpoint.path)
    config.architectures = config.architectures or [EfficientNetLite0.__name__]
    names = checkpoint.config.get("id2label", {})
    config.id2label = {i: str(names.get(str(i), i)) for i in range(classes)}
    config.label2id = {name: i for i, name in config.id2label.items()}
    return config


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: pixel_values → logits."""
    original = EfficientNetLite0ForImageClassification.from_pretrained(checkpoint.path)
    network = load(checkpoint)
    for module in network.modules():
        if isinstance(module, SameConv):
            module.fuse()
    size = int(checkpoint.config.get("image_size", 224))
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
            logits = original(**inputs).logits
        return Reference(probabilities=logits.softmax(-1)[0].numpy())

    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=(graph,),
        processing=Processing(image=spec),
        labels=tuple(original.config.id2label.values()),
        feeds=feeds,
        reference=reference,
        original=Original(original),
    )

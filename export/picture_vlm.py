"""Vision–language families whose pictures have one size: a vision transformer, a projector, a decoder with its mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedConfig

from edgemm.bundle.spec import ImageSpec
from edgemm.export.graph import Feeds, GraphPlan, Port
from edgemm.export.model_plan import Example
from edgemm.export.wrappers import CausalDecoder
from edgemm.tasks.masks import FULL, SLIDING
from edgemm.tasks.prompts.base import Prompt

_TILES = 64


class PictureEncoder(nn.Module):
    """pixel_values [N, 3, H, W] → image_features [N · tokens, hidden], CLIP's or SigLIP's tower and the projector.

    `layers` are the layers whose outputs are joined (as transformers counts them: 0 is what the first layer takes);
    None is the last one's after the tower's norm. Layers above are left out. `first` drops that many positions of
    each (CLIP's class token). With `newline` [hidden] one more row follows, which the host places.
    """

    def __init__(
        self,
        tower: nn.Module,
        projector: nn.Module,
        *,
        layers: Sequence[int] | None = None,
        first: int = 0,
        newline: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        tower = getattr(tower, "vision_model", tower)
        self.embeddings = tower.embeddings
        self.pre_norm = getattr(tower, "pre_layrnorm", None) or nn.Identity()
        blocks = list(tower.encoder.layers)
        self.wanted = None if layers is None else [i % (len(blocks) + 1) for i in layers]
        self.blocks = nn.ModuleList(blocks if self.wanted is None else blocks[: max(self.wanted)])
        self.post_norm = tower.post_layernorm if self.wanted is None else nn.Identity()
        self.projector, self.first = projector, first
        self.newline = None if newline is None else nn.Parameter(newline.detach(), requires_grad=False)

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """See the class."""
        x = self.pre_norm(self.embeddings(feeds["pixel_values"]))
        states = [x]
        for block in self.blocks:
            x = block(x, attention_mask=None)
            states.append(x)
        seen = x if self.wanted is None else torch.cat([states[i] for i in self.wanted], dim=-1)
        seen = self.post_norm(seen)
        rows = self.projector(seen[:, self.first :]).flatten(0, 1)
        return (rows if self.newline is None else torch.cat([rows, self.newline[None]]),)


def picture_plan(module: nn.Module, size_px: int, tokens: int, hidden: int, *, newline: bool = False) -> GraphPlan:
    """`vision_encoder`: pictures or tiles of one size, `tokens` features each, and the newline where it has one."""
    more = int(newline)
    return GraphPlan(
        role="vision_encoder",
        module=module,
        inputs=(Port("pixel_values", torch.float32, ("tiles", 3, size_px, size_px)),),
        outputs=(Port("image_features", torch.float32, ("image_tokens", hidden)),),
        ranges={"tiles": (1, 1, _TILES), "image_tokens": (tokens + more, tokens + more, _TILES * tokens + more)},
        trace={"tiles": 2},
        checks=({"tiles": 1}, {"tiles": 3}),
    )


class BiasedDecoder(CausalDecoder):
    """A decoder whose additive masks are inputs: one for all layers, or one more for those with a window."""

    def __init__(self, model: nn.Module, head: nn.Module, layers: int, *, sliding: bool) -> None:
        super().__init__(model, head, layers)
        self.sliding = sliding

    def mask(self, feeds: Feeds) -> Any:
        """The biases by kind of layer, as Gemma's models take them."""
        dtype = feeds["inputs_embeds"].dtype
        full = feeds[FULL].to(dtype)
        return {"full_attention": full, "sliding_attention": feeds[SLIDING].to(dtype)} if self.sliding else full


class CappedHead(nn.Module):
    """An output head whose logits are bounded by a hyperbolic tangent."""

    def __init__(self, head: nn.Module, cap: float) -> None:
        super().__init__()
        self.head, self.cap = head, cap

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """states [B, K, hidden] → logits [B, K, V]."""
        return torch.tanh(self.head(states) / self.cap) * self.cap


def head_of(model: Any, config: PreTrainedConfig) -> nn.Module:
    """The output head, with the bound of the language model's configuration where it sets one."""
    cap = getattr(config, "final_logit_softcapping", None)
    head: nn.Module = model.lm_head
    return head if cap is None else CappedHead(head, float(cap))


def picture_feeds(spec: ImageSpec) -> Callable[[Example], dict[str, dict[str, NDArray[Any]]]]:
    """`ModelPlan.feeds` of a vision encoder that takes pixels alone."""

    def feeds(example: Example) -> dict[str, dict[str, NDArray[Any]]]:
        from edgemm.processing.image import preprocess

        if example.image is None:
            return {}
        return {"vision_encoder": {"pixel_values": preprocess(example.image, spec).pixel_values}}

    return feeds


def pixels_of(prompt: Prompt, _: Example | None = None) -> dict[str, Any]:
    """What the original takes beside ids: the pixels of every picture, [N, 3, H, W]."""
    pixels = [torch.from_numpy(m.feeds["pixel_values"]) for m in prompt.media]
    return {"pixel_values": torch.cat(pixels)} if pixels else {}

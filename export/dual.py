"""What the families of paired encoders share: their two graphs, and how the original is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import AudioSpec, NaFlexSpec, SimilaritySpec, TextSpec
from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import Feeds, GraphPlan, Port, Sizes
from edgemm.export.model_plan import Example, ModelPlan, Original, Reference
from edgemm.export.plans import BATCH
from edgemm.export.text import tokenizer_files

TASKS = ("embed", "classify", "retrieve", "recommend")
FUNCTIONS = {"classify": "zero_shot"}

Arrays = dict[str, NDArray[Any]]
See = Callable[[Feeds, Example], Any]
Read = Callable[[Feeds], Any]


class Pooled(nn.Module):
    """One tower: `name` [B, …] → its pooled and projected features [B, D]."""

    def __init__(self, tower: nn.Module, name: str, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.tower, self.name = tower, name
        self.projection = projection if projection is not None else nn.Identity()

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """See the class."""
        return (self.projection(self.tower(feeds[self.name]).pooler_output),)


def picture_plan(module: nn.Module, size_px: tuple[int, int], dim: int, sizes: Sizes | None = None) -> GraphPlan:
    """`vision_encoder`: pixel_values [B, 3, H, W] → image_features [B, D]."""
    return GraphPlan(
        role="vision_encoder",
        module=module,
        inputs=(Port("pixel_values", torch.float32, ("batch", 3, *size_px)),),
        outputs=(Port("image_features", torch.float32, ("batch", dim)),),
        ranges={"batch": BATCH},
        trace={"batch": 2} | dict(sizes or {}),
        checks=({"batch": 1}, {"batch": 3}),
    )


def text_plan(
    module: nn.Module, similarity: SimilaritySpec, vocabulary: int, dim: int, *, masked: bool, end: int | None = None
) -> GraphPlan:
    """`text_encoder`: input_ids and, if `masked`, attention_mask, both [B, S] → text_features [B, D].

    S is fixed where every text is padded to the same length. `end` is the token that texts are pooled at.
    """
    longest = similarity.text_tokens
    tokens: int | str = longest if similarity.pad_texts else "tokens"

    def make(sizes: Sizes, rng: torch.Generator) -> Feeds:
        batch, length = sizes["batch"], sizes.get("tokens", longest)
        ids = torch.randint(0, vocabulary, (batch, length), generator=rng)
        mask = torch.ones_like(ids)
        if end is not None:
            ids[ids == end] = 0 if end else 1
            ids[:, -1] = end
        if batch > 1 and length > 2:
            ids[0, -1], mask[0, -1] = similarity.pad, 0
            ids[0, -2] = ids[0, -2] if end is None else end
        return {"input_ids": ids, "attention_mask": mask}

    def sizes(batch: int, length: int) -> dict[str, int]:
        return {"batch": batch} | ({} if similarity.pad_texts else {"tokens": min(length, longest)})

    ports = [Port("input_ids", torch.int64, ("batch", tokens))]
    if masked:
        ports.append(Port("attention_mask", torch.int64, ("batch", tokens)))
    return GraphPlan(
        role="text_encoder",
        module=module,
        inputs=tuple(ports),
        outputs=(Port("text_features", torch.float32, ("batch", dim)),),
        ranges={"batch": BATCH} | ({} if similarity.pad_texts else {"tokens": (1, min(16, longest), longest)}),
        trace=sizes(2, 5),
        checks=(sizes(1, 3), sizes(1, longest), sizes(3, 7)),
        make=make,
        treatment="dynamic",
    )


def similarity_spec(
    checkpoint: Checkpoint,
    *,
    scale: torch.Tensor,
    text_tokens: int,
    bias: torch.Tensor | None = None,
    lower_case: bool = False,
    **more: Any,
) -> SimilaritySpec:
    """`scale` and `bias` as the checkpoint stores them (the scale as its logarithm); padding as its tokenizer pads."""
    settings = checkpoint.json("tokenizer_config.json")
    longest = settings.get("model_max_length", text_tokens)
    return SimilaritySpec(
        scale=float(scale.exp()),
        bias=0.0 if bias is None else float(bias),
        text_tokens=int(min(text_tokens, longest)),
        pad=pad_id(checkpoint),
        padding_side=settings.get("padding_side", "right"),
        lower_case=lower_case or bool(settings.get("do_lower_case")),
        **more,
    )


def sigmoid_spec(checkpoint: Checkpoint, model: Any, text_tokens: int, *, lower_case: bool = False) -> SimilaritySpec:
    """SigLIP's: every pair on its own, and every text padded to the same length, without a mask."""
    return similarity_spec(
        checkpoint,
        scale=model.logit_scale.detach(),
        bias=model.logit_bias.detach(),
        text_tokens=text_tokens,
        function="sigmoid",
        pad_texts=True,
        lower_case=lower_case,
    )


def pad_id(checkpoint: Checkpoint) -> int:
    """The id that texts are padded with. Raises CheckpointError where the tokenizer has none."""
    import tokenizers

    token = checkpoint.json("tokenizer_config.json").get("pad_token")
    token = token["content"] if isinstance(token, dict) else token
    _, files = tokenizer_files(checkpoint)
    found = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"]).token_to_id(token) if token else None
    if found is None:
        raise CheckpointError(
            f"the tokenizer of {checkpoint.path} has no padding token",
            hint="set pad_token in tokenizer_config.json to the one that it was trained with",
        )
    return int(found)


def dual_plan(
    checkpoint: Checkpoint,
    model_type: str,
    graphs: tuple[GraphPlan, GraphPlan],
    similarity: SimilaritySpec,
    original: tuple[See, Read],
    model: Any,
    *,
    image: Any = None,
    audio: AudioSpec | None = None,
) -> ModelPlan:
    """A tower for pictures or sound and one for texts.

    `original` gives the features that the untouched `model` makes of the first graph's inputs (and the example that
    they were made of), and of a text's.
    """
    text, files = tokenizer_files(checkpoint)
    text = text.model_copy(update={"add_special_tokens": True})
    see, read = original
    takes: Literal["image", "audio"] = "image" if audio is None else "audio"

    def feeds(example: Example) -> dict[str, Arrays]:
        made = _seen(example, image, audio)
        return {graphs[0].role: made} if made else {}

    def reference(example: Example) -> Reference:
        seen = {k: torch.from_numpy(v) for k, v in feeds(example)[graphs[0].role].items()}
        ids = text_feeds(checkpoint, text, similarity, example.question)
        with torch.no_grad():
            both = [see(seen, example), read({k: torch.from_numpy(v) for k, v in ids.items()})]
        return Reference(values=np.concatenate([unit_vector(features_of(x)) for x in both]))

    return ModelPlan(
        model_type=model_type,
        tasks=TASKS,
        graphs=graphs,
        processing=Processing(image=image, audio=audio, text=text, similarity=similarity, functions=FUNCTIONS),
        files=files,
        feeds=feeds,
        reference=reference,
        original=Original(model, towers=original),
        takes=takes,
    )


def original_features(model: Any) -> tuple[See, Read]:
    """The features of an untouched model of pictures and texts."""
    return lambda feeds, _: model.get_image_features(**feeds), lambda feeds: model.get_text_features(**feeds)


def features_of(output: Any) -> torch.Tensor:
    """The pooled features in what `get_*_features` returns, which older versions return as they are."""
    found = getattr(output, "pooler_output", output)
    assert isinstance(found, torch.Tensor)
    return found


def unit_vector(features: torch.Tensor) -> NDArray[np.float32]:
    """The first row of `features` [B, D] at length 1."""
    values = torch.nn.functional.normalize(features[0].float(), dim=-1).numpy()
    return np.asarray(values, np.float32)


def _seen(example: Example, image: Any, audio: AudioSpec | None) -> Arrays:
    from edgemm.export.precision.calibration import RATE_HZ
    from edgemm.processing.audio import to_mono_16k
    from edgemm.processing.features import prepare
    from edgemm.processing.image import preprocess
    from edgemm.processing.naflex import naflex

    if audio is not None and example.audio is not None:
        made = prepare(to_mono_16k(example.audio, RATE_HZ, audio.sample_rate_hz), audio)
        return {made.name: made.values}
    if image is None or example.image is None:
        return {}
    if isinstance(image, NaFlexSpec):
        return dict(naflex(example.image, image))
    return {"pixel_values": preprocess(example.image, image).pixel_values}


def text_feeds(checkpoint: Checkpoint, text: TextSpec, similarity: SimilaritySpec, sentence: str) -> Arrays:
    """The text encoder's inputs for one sentence."""
    from edgemm.processing.text import Tokenizer
    from edgemm.tasks.dual import padded

    tokenizer = Tokenizer(checkpoint.path / "tokenizer.json", text)
    tokenizer.cut_at(similarity.text_tokens)
    made = padded([tokenizer.encode(sentence.lower() if similarity.lower_case else sentence)], similarity)
    return {"input_ids": made["input_ids"]} if similarity.pad_texts else made

"""CLAP: a tower for sound and one for texts, trained on pairs (Wu et al., arXiv 2211.06687)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import ClapModel

from edgemm.bundle.spec import RepeatMelSpec
from edgemm.errors import CheckpointError
from edgemm.export import dual
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import Feeds, GraphPlan, Port
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import Example, ModelPlan
from edgemm.export.plans import BATCH
from edgemm.export.tracing import padding_bias, use_plain_attention

MODEL_TYPE = "clap"
TASKS = ("embed", "classify", "retrieve", "recommend")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "audio encoder": ("audio_model.audio_encoder.layers.", "audio_projection."),
    "text encoder": ("text_model.encoder.layer.", "text_projection."),
}


class SoundTower(nn.Module):
    """input_features [B, mel, T] → audio_features [B, D]."""

    def __init__(self, tower: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """See the class."""
        x = feeds["input_features"].transpose(1, 2).unsqueeze(1)
        return (self.projection(self.tower(input_features=x).pooler_output),)


class TextTower(nn.Module):
    """input_ids, attention_mask [B, S], padded after the text → text_features [B, D]."""

    def __init__(self, tower: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection
        self.first = tower.embeddings.padding_idx + 1

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """See the class."""
        ids = feeds["input_ids"]
        dtype = self.tower.embeddings.word_embeddings.weight.dtype
        places = torch.arange(self.first, self.first + ids.shape[1]).expand_as(ids)
        pooled = self.tower(
            input_ids=ids,
            attention_mask=padding_bias(feeds["attention_mask"], dtype),
            token_type_ids=torch.zeros_like(ids),
            position_ids=places,
        ).pooler_output
        return (self.projection(pooled),)


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Two graphs: audio_encoder, text_encoder. Refuses checkpoints that fuse crops of long sound at random."""
    if checkpoint.config.get("audio_config", {}).get("enable_fusion"):
        raise CheckpointError(
            f"{checkpoint.path} fuses random crops of long sound, which gives no two equal answers",
            hint="export an unfused CLAP checkpoint",
        )
    original, traced = load_pair(ClapModel, checkpoint)
    use_plain_attention(traced)
    config, text = traced.config, traced.config.text_config
    spec = _mel(checkpoint, config)
    first = traced.text_model.embeddings.padding_idx + 1
    similarity = dual.similarity_spec(
        checkpoint,
        scale=original.logit_scale_a.detach(),
        text_tokens=text.max_position_embeddings - first,
        template="This is a sound of {}.",
    )
    if similarity.padding_side != "right":
        raise CheckpointError(f"{checkpoint.path} pads texts on the left: its positions begin at the text")
    graphs = (
        _sound_plan(SoundTower(traced.audio_model, traced.audio_projection), spec, config.projection_dim),
        dual.text_plan(
            TextTower(traced.text_model, traced.text_projection),
            similarity,
            text.vocab_size,
            config.projection_dim,
            masked=True,
        ),
    )

    def hear(feeds: Feeds, _: Example) -> Any:
        return original.get_audio_features(input_features=feeds["input_features"].transpose(1, 2).unsqueeze(1))

    features = hear, lambda feeds: original.get_text_features(**feeds)
    return dual.dual_plan(checkpoint, MODEL_TYPE, graphs, similarity, features, original, audio=spec)


def _sound_plan(module: nn.Module, spec: RepeatMelSpec, dim: int) -> GraphPlan:
    frames = round(spec.chunk_s * spec.sample_rate_hz) // spec.hop + 1
    return GraphPlan(
        role="audio_encoder",
        module=module,
        inputs=(Port("input_features", torch.float32, ("batch", spec.n_mels, frames)),),
        outputs=(Port("audio_features", torch.float32, ("batch", dim)),),
        ranges={"batch": BATCH},
        trace={"batch": 2},
        checks=({"batch": 1}, {"batch": 3}),
    )


def _mel(checkpoint: Checkpoint, config: Any) -> RepeatMelSpec:
    extractor = checkpoint.json("preprocessor_config.json")
    if extractor.get("truncation", "fusion") != "rand_trunc":
        raise CheckpointError(
            f"{checkpoint.path} has a tower without fusion, but its preprocessor_config.json fuses crops",
            hint='set "truncation" to "rand_trunc" there, as the unfused checkpoints have it',
        )
    return RepeatMelSpec(
        sample_rate_hz=int(extractor.get("sampling_rate", 48_000)),
        n_mels=config.audio_config.num_mel_bins,
        n_fft=int(extractor.get("fft_window_size", 1024)),
        hop=int(extractor.get("hop_length", 480)),
        chunk_s=float(extractor.get("max_length_s", 10)),
        min_hz=float(extractor.get("frequency_min", 0)),
        max_hz=float(extractor.get("frequency_max", 14_000)),
        fill=extractor.get("padding", "repeatpad"),
    )

"""AST: a sound → its classes (Gong et al., arXiv 2104.01778)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import ASTForAudioClassification

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import KaldiMelSpec
from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import Feeds, Port
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import ModelPlan, Original
from edgemm.export.taggers import functions, hear, single_graph, tagger_plan
from edgemm.export.tracing import use_plain_attention

MODEL_TYPE = "audio-spectrogram-transformer"
TASKS = ("classify",)
NEEDS: Mapping[str, tuple[str, ...]] = {"sound network": ("audio_spectrogram_transformer.encoder.", "classifier.")}


class Tagger(nn.Module):
    """input_features [B, mel, T] → logits [B, classes]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """See the class."""
        return (self.model(feeds["input_features"].transpose(1, 2)).logits,)


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: input_features → logits."""
    original, traced = load_pair(ASTForAudioClassification, checkpoint)
    use_plain_attention(traced)
    spec = mel_spec(checkpoint, original.config)
    port = Port("input_features", torch.float32, ("batch", spec.n_mels, spec.frames))
    return tagger_plan(
        MODEL_TYPE,
        original.config,
        single_graph(Tagger(traced), port, original.config.num_labels),
        Processing(audio=spec, functions=functions(original.config)),
        lambda example: hear(example, spec),
        Original(original, lambda feeds: {"input_values": feeds["input_features"].transpose(1, 2)}),
    )


def mel_spec(checkpoint: Checkpoint, config: Any) -> KaldiMelSpec:
    """How sound becomes `input_features`. Raises CheckpointError where preprocessor and model disagree."""
    extractor = checkpoint.json("preprocessor_config.json")
    shape = int(extractor.get("num_mel_bins", 128)), int(extractor.get("max_length", 1024))
    if shape != (config.num_mel_bins, config.max_length):
        raise CheckpointError(f"preprocessor_config.json makes {shape} features, config.json expects others")
    normalize = extractor.get("do_normalize", True)
    return KaldiMelSpec(
        sample_rate_hz=int(extractor.get("sampling_rate", 16_000)),
        n_mels=shape[0],
        frames=shape[1],
        mean=float(extractor.get("mean", -4.2677393)) if normalize else 0.0,
        std=float(extractor.get("std", 4.5689974)) if normalize else 0.5,
    )

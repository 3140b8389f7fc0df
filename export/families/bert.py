"""BERT as a sentence encoder: a text → its embedding (Reimers and Gurevych, arXiv 1908.10084)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertModel

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import SimilaritySpec
from edgemm.errors import CheckpointError
from edgemm.export import dual
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import Feeds
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import Example, ModelPlan, Original, Reference
from edgemm.export.text import tokenizer_files
from edgemm.export.tracing import padding_bias, use_plain_attention

MODEL_TYPE = "bert"
TASKS = ("embed", "retrieve", "recommend")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "text encoder": ("encoder.layer.|bert.encoder.layer.", "embeddings.word_embeddings.|bert.embeddings.word_"),
}

_POOLING = "1_Pooling/config.json"
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}


class SentenceEncoder(nn.Module):
    """input_ids, attention_mask [B, S] → text_features [B, D]: the states' mean, or the first one."""

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """See the class."""
        mask = feeds["attention_mask"]
        bias = padding_bias(mask, self.model.embeddings.word_embeddings.weight.dtype)
        states = self.model(input_ids=feeds["input_ids"], attention_mask=bias).last_hidden_state
        return (pooled(states, mask, self.pooling),)


def pooled(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """States [B, S, D] → [B, D]; mask [B, S] is 0 at padding."""
    if pooling == "first":
        return states[:, 0]
    weights = mask.to(states.dtype)[:, :, None]
    return (states * weights).sum(1) / weights.sum(1)


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: text_encoder."""
    original, traced = load_pair(BertModel, checkpoint, unused=("pooler.",))
    use_plain_attention(traced)
    config, pooling = original.config, pooling_of(checkpoint)
    text, files = tokenizer_files(checkpoint)
    text = text.model_copy(update={"add_special_tokens": True})
    similarity = _similarity(checkpoint, config.max_position_embeddings)

    def reference(example: Example) -> Reference:
        made = dual.text_feeds(checkpoint, text, similarity, example.question)
        ids = {k: torch.from_numpy(v) for k, v in made.items()}
        with torch.no_grad():
            found = pooled(original(**ids).last_hidden_state, ids["attention_mask"], pooling)
        return Reference(values=np.asarray(dual.unit_vector(found), np.float32))

    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=(
            dual.text_plan(
                SentenceEncoder(traced, pooling), similarity, config.vocab_size, config.hidden_size, masked=True
            ),
        ),
        processing=Processing(text=text, similarity=similarity),
        files=files,
        reference=reference,
        original=Original(original),
        takes="question",
    )


def pooling_of(checkpoint: Checkpoint) -> str:
    """As sentence-transformers wrote it; a checkpoint without its files is pooled by the mean."""
    settings: dict[str, Any] = checkpoint.json(_POOLING)
    wanted = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    if wanted and (len(wanted) > 1 or wanted[0] not in _MODES):
        raise CheckpointError(
            f"{checkpoint.path} pools by {', '.join(wanted)}: expected one of {', '.join(_MODES)}",
            hint="a family of your own can pool otherwise: edgemm export --list-families",
        )
    return _MODES[wanted[0]] if wanted else "mean"


def _similarity(checkpoint: Checkpoint, positions: int) -> SimilaritySpec:
    settings = checkpoint.json("sentence_bert_config.json")
    return SimilaritySpec(
        text_tokens=min(positions, int(settings.get("max_seq_length") or positions)),
        pad=dual.pad_id(checkpoint),
        lower_case=bool(settings.get("do_lower_case")),
    )

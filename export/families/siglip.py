"""SigLIP: a picture and a text tower trained pair by pair with a sigmoid (Zhai et al., arXiv 2303.15343).

The fixed-resolution checkpoints of SigLIP 2 are of this type too.
"""

from __future__ import annotations

from collections.abc import Mapping

from transformers import SiglipModel

from edgemm.export import dual
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.image_spec import image_spec
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import ModelPlan
from edgemm.export.tracing import use_plain_attention

MODEL_TYPE = "siglip"
TASKS = ("embed", "classify", "retrieve", "recommend")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("vision_model.encoder.layers.", "vision_model.head."),
    "text encoder": ("text_model.encoder.layers.", "text_model.head."),
}

_BICUBIC = 3


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Two graphs: vision_encoder, text_encoder."""
    original, traced = load_pair(SiglipModel, checkpoint)
    use_plain_attention(traced)
    config = traced.config
    text = config.text_config
    spec = image_spec(
        {"resample": _BICUBIC} | checkpoint.json("preprocessor_config.json"), config.vision_config.image_size
    )
    similarity = dual.sigmoid_spec(checkpoint, original, text.max_position_embeddings)
    dim = text.projection_size or text.hidden_size
    graphs = (
        dual.picture_plan(
            dual.Pooled(traced.vision_model, "pixel_values"),
            (spec.height_px, spec.width_px),
            config.vision_config.hidden_size,
        ),
        dual.text_plan(dual.Pooled(traced.text_model, "input_ids"), similarity, text.vocab_size, dim, masked=False),
    )
    features = dual.original_features(original)
    return dual.dual_plan(checkpoint, MODEL_TYPE, graphs, similarity, features, original, image=spec)

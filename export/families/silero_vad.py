"""Silero VAD: 32 ms of sound → the probability that someone speaks. Its published ONNX graph is taken as it is."""

from __future__ import annotations

from collections.abc import Mapping

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import RawAudioSpec
from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.model_plan import ModelPlan, ReadyGraph

MODEL_TYPE = "silero-vad"
TASKS = ("voice_activity",)
NEEDS: Mapping[str, tuple[str, ...]] = {}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph that comes as ONNX: `input`, `state` (and `sr`) → `output`, next `state`."""
    path = checkpoint.path / str(checkpoint.config.get("graph", "model.onnx"))
    if not path.is_file():
        raise CheckpointError(f"{checkpoint.path} lacks its voice activity graph {path.name}")
    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=TASKS,
        graphs=(),
        processing=Processing(
            audio=RawAudioSpec(sample_rate_hz=int(checkpoint.config["sample_rate_hz"])),
            functions={"voice_activity": "silero"},
        ),
        ready=(ReadyGraph("voice_activity", path),),
    )

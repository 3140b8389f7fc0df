"""Silero VAD: one ONNX file of the wheel, as it is, and the numbers that a caller needs."""

from __future__ import annotations

from pathlib import Path

from checkpoint_files import write_json
from wheels import Wheel, read

WHEEL = Wheel(
    "silero-vad",
    "6.2.3",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
    "MIT",
)
# Of the wheel's variants the one with fixed shapes and without control flow: the others hold an
# If, which OpenVINO does not load, or take whole recordings.
GRAPH = "silero_vad/data/silero_vad_openvino_16k.onnx"

CONFIG = {
    "model_type": "silero-vad",
    "graph": "model.onnx",
    "sample_rate_hz": 16_000,
    "chunk_samples": 512,
    "context_samples": 64,
    "state_shape": [2, 1, 128],
}


def build(folder: Path, cache: Path) -> None:
    """Write the `vad` checkpoint to `folder` (made if absent)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(read(WHEEL, cache, GRAPH))
    write_json(folder / "config.json", CONFIG)
    licence = read(WHEEL, cache, "silero_vad-6.2.3.dist-info/licenses/LICENSE")
    (folder / "LICENSE").write_bytes(licence.rstrip() + b"\n")

"""What a checkpoint is can be said where the `export` extra is not installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from edgemm.export import families
from tests.cli.cli_runner import CHECKPOINT, ROOT, Ran, own_process
from tests.export.exported import checkpoint

ABSENT = ("torch", "transformers", "onnx", "onnxscript", "optimum", "safetensors")
BLOCK = f"""
import sys
for name in {ABSENT!r}:
    sys.modules[name] = None  # importing it raises
"""
Inspect = Callable[[Path], Ran]


@pytest.fixture
def inspect(tmp_path: Path) -> Inspect:
    """`edgemm inspect PATH --json` where the extra's packages cannot be imported."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK)
    environment = {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    return lambda path: own_process("inspect", path, "--json", env=environment)


def _described(document: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(c["name"], c["parameters"], c["bytes"]) for c in document["components"]]


def test_the_extra_is_absent(inspect: Inspect, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    ran = own_process("export", CHECKPOINT / "vad", "-o", tmp_path / "out", env=environment)
    assert ran.code == 1
    assert 'pip install "edgemm[export]"' in ran.err


def test_the_projects_own(inspect: Inspect) -> None:
    ran = inspect(CHECKPOINT)
    assert ran.code == 0, ran.err
    seeing = ["caption", "answer", "describe", "detect", "classify", "embed", "retrieve", "recommend"]
    assert ran.json["tasks"] == [*seeing, "transcribe", "voice_activity"]
    assert ran.json["problems"] == []
    ready = (CHECKPOINT / "vad" / "model.onnx").stat().st_size
    assert ran.json["bytes_per_precision"]["fp32"] == 4 * ran.json["parameters"] + ready > 100e6


def test_components_are_the_modalities(inspect: Inspect) -> None:
    path = checkpoint("smolvlm")
    found = inspect(path).json
    tensors = load_file(path / "model.safetensors")
    sizes = dict.fromkeys(("vision_encoder", "language_model", "shared"), 0)
    for name, tensor in tensors.items():
        inside = name.startswith(("model.vision_model.", "model.connector."))
        role = "vision_encoder" if inside else "language_model" if ".text_model." in name else "shared"
        sizes[role] += tensor.numel()
    assert _described(found) == [(role, n, 4 * n) for role, n in sizes.items()]
    assert all(sizes.values())
    assert (found["model_type"], found["tasks"]) == ("smolvlm", ["answer", "caption"])
    assert {c["precision"] for c in found["components"]} == {"fp32"}


def test_half_precision_is_read_from_the_headers(inspect: Inspect, tmp_path: Path) -> None:
    path = shutil.copytree(checkpoint("moonshine"), tmp_path / "half")
    tensors = load_file(path / "model.safetensors")
    save_file({k: v.half() for k, v in tensors.items()}, path / "model.safetensors")
    parts = inspect(path).json["components"]
    assert [c["precision"] for c in parts] == ["fp16", "fp16"]
    assert all(c["bytes"] == 2 * c["parameters"] for c in parts)


def test_every_modality_without_weights_is_a_problem(inspect: Inspect, tmp_path: Path) -> None:
    path = shutil.copytree(checkpoint("smolvlm"), tmp_path / "rest")
    tensors = load_file(path / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith(("model.vision_model.", "model.text_model."))}
    save_file(kept, path / "model.safetensors")
    ran = inspect(path)
    assert ran.code == 3
    assert len(ran.json["problems"]) == 2
    for problem, modality in zip(ran.json["problems"], ("vision encoder", "language model"), strict=True):
        assert f"without its {modality}" in problem
        assert problem in ran.err


def test_an_unknown_family_is_a_problem(inspect: Inspect, tmp_path: Path) -> None:
    path = shutil.copytree(checkpoint("moonshine"), tmp_path / "odd")
    (path / "config.json").write_text('{"model_type": "moonshin"}')
    ran = inspect(path)
    assert ran.code == 3
    assert "nearest are moonshine" in ran.json["problems"][0]
    assert [name for name, _, _ in _described(ran.json)] == ["model"]


def test_what_is_read_is_what_the_modules_say() -> None:
    for name, facts in families.known().items():
        module = families.find(name)
        assert (facts.model_type, facts.tasks, facts.needs) == (module.MODEL_TYPE, module.TASKS, module.NEEDS)

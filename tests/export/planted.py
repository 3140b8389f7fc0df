"""A tiny classifier with one layer that int8 cannot hold, and a data set that it has right in fp32."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from transformers import ViTForImageClassification

from edgemm.bundle.opening import open_bundle
from edgemm.export.pipeline import export
from edgemm.model import Model
from tests.export.exported import checkpoint, picture, place

LAYER = "vit.layers.0.mlp.fc2"
_DEAD = 3  # a hidden value that is always 0
_SURE = 0.4


@cache
def planted() -> Path:
    """The tiny ViT; in one matrix every output has a huge weight on a value that is never anything but 0.

    So fp32 computes what it did, and int8 per output channel has no steps left for the other weights.
    """
    path = place() / "planted"
    shutil.copytree(checkpoint("vit"), path)
    model = ViTForImageClassification.from_pretrained(path)
    mlp = model.vit.layers[0].mlp
    with torch.no_grad():
        mlp.fc1.weight[_DEAD] = 0.0
        mlp.fc1.bias[_DEAD] = -30.0
        mlp.fc2.weight[:, _DEAD] = 500.0
    model.save_pretrained(path)
    return path


@cache
def labelled() -> Path:
    """Pictures of which the planted checkpoint is sure, with what it says as their labels."""
    folder = place() / "labelled"
    folder.mkdir()
    whole = export(planted(), place() / "planted-fp32")
    with Model(open_bundle(whole.bundle), runtime="onnxruntime") as model:
        rows = [row for seed in range(200) if (row := _row(model, folder, seed)) is not None]
    assert len(rows) >= 20
    assert len({row["label"] for row in rows}) >= 3
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _row(model: Model, folder: Path, seed: int) -> dict[str, str] | None:
    rng = np.random.default_rng(seed)
    image = picture(48, 64, seed=seed) * rng.uniform(0.3, 1.5, 3) + rng.uniform(-80, 80, 3)
    cv2.imwrite(str(folder / f"{seed}.png"), np.clip(image, 0, 255).astype(np.uint8)[..., ::-1])
    classify = model.task("classify")
    said = classify.probabilities(cv2.imread(str(folder / f"{seed}.png"))[..., ::-1])
    second, first = np.sort(said)[-2:]
    if first - second < _SURE:
        return None
    return {"file_name": f"{seed}.png", "label": classify.names[int(said.argmax())]}

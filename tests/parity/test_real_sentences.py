"""MiniLM with its real weights against transformers. Slow tier: the recipe fetches 84 MB once."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel

from edgemm.bundle.opening import open_bundle
from edgemm.export.families.bert import pooled
from edgemm.export.pipeline import export
from edgemm.model import Model
from tests.rig.speech import sentences

pytestmark = pytest.mark.slow

RUNTIMES = ("onnxruntime", "openvino")
COSINES = {"fp32": 0.99999, "int8": 0.99}
LONGEST = 256


@pytest.fixture(scope="module")
def place(tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp("minilm")
    recipe = repository / "samples" / "recipes" / "minilm.py"
    subprocess.run([sys.executable, str(recipe), "--out", str(folder / "checkpoint")], check=True, capture_output=True)
    for precision in COSINES:
        data = [repository / "samples" / "clip"]
        export(folder / "checkpoint", folder / precision, precision=precision, calibrate_on=data)
    return folder


@pytest.fixture(scope="module")
def texts():
    return ["red car", "red automobile", "banana", *sentences(600), "word " * 400]


@pytest.fixture(scope="module")
def expected(place, texts):
    network = BertModel.from_pretrained(place / "checkpoint").eval()
    made = AutoTokenizer.from_pretrained(place / "checkpoint")(
        texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
    )
    with torch.no_grad():
        rows = pooled(network(**made).last_hidden_state, made["attention_mask"], "mean")
    return torch.nn.functional.normalize(rows, dim=-1).numpy()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("precision", COSINES)
def test_real_sentences_have_the_originals_embeddings(place, texts, expected, precision, runtime):
    with Model(open_bundle(place / precision), runtime=runtime) as model:
        found = model.task("embed").texts(texts)
    cosines = (found * expected).sum(-1)
    print(f"{precision} on {runtime}: least cosine {cosines.min():.6f} over {len(texts)} texts")
    assert cosines.min() >= COSINES[precision]
    assert found[0] @ found[1] > 0.85 > 0.5 > found[0] @ found[2]


def test_real_sentences_are_found(place):
    with Model(open_bundle(place / "int8")) as model:
        ranking = model.retrieve("the robot should grasp the mug", ["take the cup", "the sky is blue", "open a window"])
    assert ranking.items[0].item == "take the cup"
    assert np.diff([i.score for i in ranking.items]).max() <= 0

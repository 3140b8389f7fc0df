"""Sentence encoders against transformers: texts of awkward lengths, alone and in batches."""

from __future__ import annotations

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from transformers import BertModel, PreTrainedTokenizerFast

from edgemm.errors import CheckpointError, InputError
from edgemm.export.families.bert import pooled
from edgemm.export.pipeline import export
from tests.export.exported import RUNTIMES, checkpoint, model
from tests.tiny.text import LONGEST

POOLING = {"bert": "mean", "bert_first": "first"}
TEXTS = [
    "a cup", "x", "A red car is parked behind the station.", "größe, naïve café", "?!", "the " * 100, "turn\tleft\n",
    "zebra quokka 机器人", "pick up the cup and bring it to the table, then wait for the next command of the operator",
]  # fmt: skip
COSINE = 0.9999


@cache
def original(name):
    path = checkpoint(name)
    return BertModel.from_pretrained(path).eval(), PreTrainedTokenizerFast.from_pretrained(path)


def expected(name, texts):
    network, tokenizer = original(name)
    made = tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    with torch.no_grad():
        states = network(**made).last_hidden_state
    rows = pooled(states, made["attention_mask"], POOLING[name])
    return torch.nn.functional.normalize(rows, dim=-1).numpy()


@pytest.fixture(scope="module", params=RUNTIMES)
def bundles(request):
    models = {name: model(name, request.param) for name in POOLING}
    yield models
    for one in models.values():
        one.close()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", POOLING)
def test_a_text_has_the_originals_embedding(bundles, name, text):
    found = bundles[name].embed(text=text).values
    assert found @ expected(name, [text])[0] >= COSINE
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", POOLING)
def test_a_batch_is_what_its_texts_are_alone(bundles, name):
    found = bundles[name].task("embed").texts(TEXTS)
    assert (found * expected(name, TEXTS)).sum(-1).min() >= COSINE
    assert (found[0] @ found[1:].T).max() < COSINE


@pytest.mark.parametrize("name", POOLING)
def test_texts_are_ranked_by_their_cosine(bundles, name):
    ranking = bundles[name].retrieve(TEXTS[0], TEXTS[1:])
    rows = expected(name, TEXTS)
    scores = rows[1:] @ rows[0]
    assert [i.score for i in ranking.items] == pytest.approx(sorted(scores, reverse=True), abs=1e-4)


def test_what_is_no_text_is_refused(bundles):
    with pytest.raises(InputError, match="cannot embed pictures: it knows texts"):
        bundles["bert"].embed(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="text 0 is empty"):
        bundles["bert"].embed(text="  ")


def test_an_unknown_pooling_is_refused(tmp_path):
    path = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("bert"), path)
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(CheckpointError, match="pools by pooling_mode_weightedmean_tokens"):
        export(path, tmp_path / "bundle")

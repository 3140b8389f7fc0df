"""What the host picks for a memory, against Frambicus's own modules; and the form of questions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgemm.export.frambicus.concepts import Concepts
from edgemm.export.frambicus.configuration import FrambicusConfig
from edgemm.processing.memory import before_newest, classes_of, concepts_of, plain_question

CELLS, CLASSES = 49, 60


@pytest.fixture(scope="module")
def concepts():
    small = {"hidden_size": 32, "vocab_size": 50, "num_attention_heads": 4, "concepts": 6}
    vision = {"id2label": {i: f"class {i}" for i in range(CLASSES)}}
    speech = {"hidden_size": 32, "vocab_size": 50}
    return Concepts(FrambicusConfig(vision_config=vision, text_config=small, speech_config=speech))


def cell_logits(frames, seed, loud=4.0):
    return loud * torch.randn(frames, CELLS, CLASSES, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
@pytest.mark.parametrize("loud", [0.5, 4.0, 30.0])
def test_the_concepts_are_the_models(concepts, frames, loud):
    logits = cell_logits(frames, seed=frames, loud=loud)
    both = torch.cat((logits, logits.mean(1, keepdim=True)), dim=1).softmax(-1)[None]
    want = concepts.best(both, torch.ones(1, frames, dtype=torch.long))
    got = concepts_of([classes_of(frame) for frame in logits.numpy()], concepts.count)
    assert got[0].tolist() == want[0][0].tolist()
    np.testing.assert_allclose(got[1], want[1][0].numpy(), atol=2e-4)
    # Where a class is sure in no cell, any cell will do.
    sure = want[1][0, :, 0].numpy() > np.log(1e-6) + 1e-3
    assert (got[2] == want[2][0].numpy())[sure].all()


def test_times_count_back_from_the_newest():
    assert before_newest([10.0, 10.5, 11.25]).tolist() == [-1.25, -0.75, 0.0]
    assert before_newest([1.7e9 + 0.5, 1.7e9]).tolist() == [0.0, -0.5]


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("What color is the cat?", "what color is the cat?"),
        (" Is there, please, a  dog. ", "is there please a dog?"),
        ("what's in front of the T-shirt??", "what's in front of the t-shirt?"),
        ("It’s 3 what?!", "it's 3 what?"),
        ("why", "why?"),
        ("  ?! ", ""),
        ("", ""),
    ],
)
def test_questions_take_the_form_of_training(said, asked):
    assert plain_question(said) == asked

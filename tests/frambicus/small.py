"""Frambicus over the repository's towers, small and untrained."""

import copy
import json
from functools import lru_cache

import numpy as np
import torch

from edgemm.export.frambicus import FrambicusForQuestionAnswering, from_towers

LABELS = ("cup", "dog", "boat")
_SMALL = {
    "connector_config": {"latents": 6, "layers": 1, "inner": 64},
    "text_config": {"num_hidden_layers": 2, "intermediate_size": 96},
    "detector_config": {"width": 48, "heads": 4, "inner": 64, "decoder_layers": 2},
}


def tiny(cls, **settings):
    """Real towers, one or two layers of the rest; the same weights at every call.

    All classes have the same modules, so that one built model serves them all.
    """
    merged = {name: given | settings.get(name, {}) for name, given in _SMALL.items()}
    model = copy.deepcopy(_built(json.dumps(merged)))
    model.__class__ = cls
    return model


@lru_cache
def _built(settings):
    torch.manual_seed(7)
    return from_towers(FrambicusForQuestionAnswering, labels=LABELS, **json.loads(settings))


def noise(count, seed=3):
    """pixel_values [count, 3, 224, 224] of coarse squares, every picture around a colour of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 1, 1)) + rng.normal(0, 50, (count, 3, 7, 7))
    pictures = (
        torch.from_numpy(coarse.clip(0, 255).astype(np.float32)).repeat_interleave(32, 2).repeat_interleave(32, 3)
    )
    return (pictures - 127) / 128

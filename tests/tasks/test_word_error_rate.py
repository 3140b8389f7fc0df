"""The word error rate against jiwer's, on the same words."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest

from edgemm.tasks.metrics import wer, words

WORDS = ["it's", "a", "the", "quick", "brown", "fox", "größe", "犬", "ten", "10", "well-known", "o'clock"]
CASES = {
    "as it is": (["The quick, brown fox!"], ["the quick brown fox"]),
    "nothing heard": (["the fox", "a"], ["", ""]),
    "far too much": (["fox"], ["the quick brown fox is a fox is a fox"]),
    "apostrophes": (["It’s ten o'clock."], ["its ten o’clock"]),
    "not ASCII": (["Größe, 犬!"], ["größe 猫"]),
    "repeated": (["a a a a b a"], ["a b a a"]),
}
for seed in range(4):
    rng = np.random.default_rng(seed)
    CASES[f"seed {seed}"] = (
        [" ".join(rng.choice(WORDS, int(rng.integers(1, 20)))) for _ in range(20)],
        [" ".join(rng.choice(WORDS, int(rng.integers(0, 20)))) for _ in range(20)],
    )


@pytest.mark.parametrize("name", CASES)
def test_equals_jiwer(name):
    meant, heard = CASES[name]
    plain = [[" ".join(words(text)) for text in texts] for texts in (meant, heard)]
    assert wer(meant, heard) == pytest.approx(100 * jiwer.wer(*plain))


def test_nothing_was_said():
    """jiwer refuses this one."""
    assert wer(["", "?"], ["", ""]) == 0
    assert wer([""], ["a word"]) == 100

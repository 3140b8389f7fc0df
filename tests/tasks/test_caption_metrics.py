"""BLEU, ROUGE-L and CIDEr-D against pycocoevalcap, over texts that are easy to get wrong, and seeded ones."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from edgemm.tasks.caption_metrics import bleu, caption_tokens, rouge_l
from edgemm.tasks.cider import cider

TOLERANCE = 1e-9
WORDS = ["a", "the", "dog", "cat", "sits", "on", "under", "red", "two", "with", "big", "größe", "犬", "café", "it's"]
# References and what was said, in tokens with spaces between.
AWKWARD = {
    "empty hypothesis": [(["a dog runs", "the dog"], ""), (["a cat"], "a cat")],
    "one word": [(["dog"], "dog"), (["a dog sits on the table"], "dog"), (["cat"], "cat sits")],
    "repeated": [(["the the cat", "the cat the cat"], "the the the the the"), (["a a a a"], "a a a a a a a a a")],
    "not ASCII": [(["größe 犬 café", "犬 犬"], "犬 größe 犬"), (["ein größe café"], "café café")],
    "many references": [([" ".join(WORDS[i:][:7]) for i in range(12)], "red big two with"), (["dog"] * 9, "a dog")],
    "far too long": [(["a dog"], " ".join(WORDS * 4)), (["the cat sits", "a"], "the cat sits")],
    "as near above as below": [(["a b", "a b c d"], "a b c"), (["x"], "y")],
    "one example": [(["a dog runs on the table"], "a dog runs on the table")],
    "nothing right": [(["a dog"], "red table"), (["the cat"], "two")],
    "no words in a reference": [([""], ""), (["", "a dog"], "a dog")],
}


def seeded(seed):
    rng = np.random.default_rng(seed)
    text = lambda: " ".join(rng.choice(WORDS, int(rng.integers(0, 14))))  # noqa: E731
    return [([text() for _ in range(int(rng.integers(1, 7)))], text()) for _ in range(30)]


CASES = AWKWARD | {f"seed {seed}": seeded(seed) for seed in range(4)}


def theirs(scorer, examples):
    gts = {i: references for i, (references, _) in enumerate(examples)}
    return scorer.compute_score(gts, {i: [said] for i, (_, said) in enumerate(examples)})


def ours(metric, examples):
    return metric(
        [[r.split() for r in references] for references, _ in examples], [said.split() for _, said in examples]
    )


@pytest.mark.parametrize("name", CASES)
def test_cider_equals_the_original(name):
    total, each = theirs(Cider(), CASES[name])
    found = ours(cider, CASES[name])
    assert found.total == pytest.approx(100 * total, abs=TOLERANCE)
    np.testing.assert_allclose(found.each, 100 * np.array(each), atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_bleu_equals_the_original(name, capsys):
    totals, each = theirs(Bleu(4), CASES[name])
    found = ours(bleu, CASES[name])
    np.testing.assert_allclose([own.total for own in found], 100 * np.array(totals), atol=TOLERANCE)
    np.testing.assert_allclose([own.each for own in found], 100 * np.array(each), atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_rouge_l_equals_the_original(name):
    total, each = theirs(Rouge(), CASES[name])
    found = ours(rouge_l, CASES[name])
    assert found.total == pytest.approx(100 * total, abs=TOLERANCE)
    np.testing.assert_allclose(found.each, 100 * each, atol=TOLERANCE)


def test_the_cases_tell_right_from_wrong():
    values = [ours(cider, examples).total for examples in CASES.values()]
    assert min(values) == 0
    assert 100 < max(values) <= 1000
    assert len({round(ours(rouge_l, e).total, 3) for e in CASES.values()}) > len(CASES) / 2


# Captions and their tokens by PTBTokenizer: the Java program itself said so.
TOKENS = {
    "A man's two-door car, parked near a fire hydrant.": "a man 's two-door car parked near a fire hydrant",
    "The dog doesn't (really) like it!": "the dog does n't -lrb- really -rrb- like it",
    'A sign says "STOP" at 10:30; 3,000 people wait...': "a sign says stop at 10:30 3,000 people wait",
    "Größe, naïve café & 5% of $20": "größe naïve café & 5 % of $ 20",
    "they're - I'm - we'll -- you've": "they 're i 'm we 'll you 've",
    "the boys' bikes; it’s late": "the boys bikes it 's late",
    "Wow!! What?! The U.S. flag at 5 p.m.": "wow !! what ?! the u.s. flag at 5 p.m.",
    "A black/white cat at 5 o'clock, 1/2 a cup": "a black/white cat at 5 o'clock 1/2 a cup",
    "it cannot, won't and isn't gonna [ever]": "it can not wo n't and is n't gon na -lsb- ever -rsb-",
    "a plan -- a dog - 犬が走る": "a plan a dog 犬が走る",
    "?": "",
}


@pytest.mark.parametrize("text", TOKENS)
def test_tokens(text):
    assert caption_tokens(text) == TOKENS[text].split()


@pytest.mark.skipif(shutil.which("java") is None, reason="the original tokenizer is a Java program")
def test_the_original_has_the_same_tokens():
    found = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(TOKENS)})
    assert [own[0] for own in found.values()] == list(TOKENS.values())

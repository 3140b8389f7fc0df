"""Tokenizers as bundles hold them: shorter, and the same ids."""

from __future__ import annotations

import json
import random

import pytest
from tokenizers import Tokenizer

from edgemm.export.text import compact
from tests.checkpoints import CORPUS, byte_level


@pytest.fixture(scope="module")
def speech(repository):
    """The repository's own, whose merges list every cut of a token."""
    path = repository / "samples" / "checkpoint" / "speech" / "tokenizer.json"
    if not path.is_file():
        pytest.skip("the repository's checkpoint is not here")
    return path.read_bytes()


def texts(tokenizer):
    rng = random.Random(1)
    pieces = list(tokenizer.get_vocab())
    yield from CORPUS
    yield " ".join(CORPUS) * 3
    yield from ("".join(rng.choice(pieces) for _ in range(500)) for _ in range(8))
    yield from ("".join(chr(rng.randint(32, 0x2FFF)) for _ in range(500)) for _ in range(4))
    yield from ("aaaaaaa", "  a  b ", "", "Größe\n\t²")


def test_less_than_two_thirds_remain_of_the_repositorys(speech):
    short = compact(speech)
    assert len(short) < 0.65 * len(speech)
    merges = [json.loads(data)["model"]["merges"] for data in (speech, short)]
    assert len(merges[1]) < 0.5 * len(merges[0])
    before, after = (Tokenizer.from_str(data.decode()) for data in (speech, short))
    for text in texts(before):
        assert after.encode(text).ids == before.encode(text).ids
    assert compact(short) == short


def test_no_merge_of_one_cut_is_lost():
    whole = byte_level(400, ["<s>"])
    short = compact(whole.to_str(pretty=True).encode())
    after = Tokenizer.from_str(short.decode())
    assert len(json.loads(short)["model"]["merges"]) == len(json.loads(whole.to_str())["model"]["merges"])
    assert all(after.encode(text).ids == whole.encode(text).ids for text in texts(whole))


def test_what_is_no_tokenizer_is_left_alone():
    assert compact(b"torn {") == b"torn {"
    assert json.loads(compact(b'{"model": {"type": "Unigram", "vocab": [["a", -1.5]]}}'))["model"]["vocab"] == [
        ["a", -1.5]
    ]

"""Token ids ↔ text against transformers' tokenizers, and text that grows token by token."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from edgemm.bundle.spec import TextSpec
from edgemm.errors import BundleError, InputError
from edgemm.processing.text import Tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "it's a café , isn't it ?",
    "größe 日本 👩‍🚀",
]
SAMPLES = [
    "", " ", "the fox", " the fox", "It's — a “test” .", "größe", "日本語のテキスト",
    "👩‍🚀 in space 🚀!",
    "line\nbreak\t tab", "a" * 300, "naïve café ☕", "mixed 日 a 本 b", "\u200d",
    "नमस्ते", "0123 456,789.0",
    "<s>special</s> inside", "trailing   ", "  leading", "e\u0301 combining", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "�", "x�y",
]  # fmt: skip


def byte_level() -> Raw:
    tokenizer = Raw(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentence_piece() -> Raw:
    """Llama's and Moonshine's kind: spaces as ▁, unknown characters as bytes."""
    trained = Raw(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(CORPUS[:1], trainers.BpeTrainer(vocab_size=90, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *model["vocab"]]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Raw(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.add_special_tokens(pieces[:3])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


@pytest.fixture(scope="module", params=[byte_level, sentence_piece])
def raw(request):
    tokenizer = request.param()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")],
    )
    # Limits that some checkpoints store; a prompt must not be cut by them.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    return tokenizer


@pytest.fixture(scope="module")
def file(raw, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    raw.save(str(path))
    return path


@pytest.fixture(scope="module")
def original(file):
    return PreTrainedTokenizerFast(tokenizer_file=str(file), bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("text", SAMPLES)
def test_encode_and_decode_equal_transformers(file, original, text):
    tokenizer = Tokenizer(file)
    ids = original.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode(text, specials=True) == original.encode(text, add_special_tokens=True)
    plain = {"clean_up_tokenization_spaces": False}
    assert tokenizer.decode(ids) == original.decode(ids, skip_special_tokens=True, **plain)
    with_specials = original.decode(ids, skip_special_tokens=False, **plain)
    assert tokenizer.decode(ids, skip_specials=False) == with_specials


@pytest.mark.parametrize("text", ["a , b . c ! d ?", "it 's , we 're n't ' x ' done .", "plain"])
def test_clean_up_equals_transformers(file, original, text):
    ids = original.encode(text, add_special_tokens=False)
    spec = TextSpec(tokenizer=file.name, clean_up=True)
    expected = original.clean_up_tokenization(original.decode(ids))
    assert Tokenizer.from_bundle(file.parent, spec).decode(ids) == expected


def test_strip_and_specials_from_the_manifest(file):
    spec = TextSpec(tokenizer=file.name, strip=True, add_special_tokens=True)
    tokenizer = Tokenizer(file, spec)
    ids = tokenizer.encode(" the fox ")
    assert ids[0] == tokenizer.id_of("<s>")
    assert ids[-1] == tokenizer.id_of("</s>")
    assert tokenizer.decode(ids) == "the fox"


@pytest.mark.parametrize("text", SAMPLES)
def test_stream_joins_to_the_whole_and_never_halves_a_character(file, text):
    tokenizer = Tokenizer(file)
    ids = tokenizer.encode(text, specials=True)
    stream = tokenizer.stream()
    for _ in range(2):  # finishing starts anew
        pieces = [stream.push(i) for i in ids]
        if "�" not in text:
            assert not any("�" in piece for piece in pieces)
        assert "".join([*pieces, stream.finish()]) == tokenizer.decode(ids)


def test_stream_of_random_ids_joins_to_the_whole(file):
    tokenizer = Tokenizer(file)
    rng = np.random.default_rng(3)
    # One wrong byte makes ByteFallback take back the right ones before it: nothing that grows can.
    whole = [i for i in range(tokenizer.vocab_size) if not tokenizer.token_of(i).startswith("<0x")]
    for _ in range(50):
        ids = rng.choice(whole, 40).tolist()
        stream = tokenizer.stream()
        text = "".join([*(stream.push(i) for i in ids), stream.finish()])
        assert text.replace("�", "") == tokenizer.decode(ids).replace("�", "")


def test_stream_shows_half_a_character_at_the_end_only(file):
    tokenizer = Tokenizer(file)
    ids = tokenizer.encode("𝄞")
    assert len(ids) > 1
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert "�" in stream.finish()


def test_words_come_out_as_they_are_complete(file):
    tokenizer = Tokenizer(file)
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in tokenizer.encode("the quick brown fox")]
    assert sum(bool(piece) for piece in pieces) >= 4


def test_ids_of_tokens(file, raw):
    tokenizer = Tokenizer(file)
    assert tokenizer.vocab_size == raw.get_vocab_size()
    assert tokenizer.token_of(tokenizer.id_of("</s>")) == "</s>"
    assert tokenizer.token_of(10**6) is None
    with pytest.raises(InputError, match="no token"):
        tokenizer.id_of("<none>")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b"not json"])
def test_torn_files(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="not a tokenizer"):
        Tokenizer(path)
    with pytest.raises(BundleError):
        Tokenizer(tmp_path / "none.json")

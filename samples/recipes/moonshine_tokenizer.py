"""From Moonshine's `tokenizer.bin` to a fast `tokenizer.json`.

The file is the list of the vocabulary's pieces: three control tokens, the 256 single bytes, and
then the pieces of a SentencePiece byte-pair model in the order in which they were merged, with
U+2581 for a space; the last 768 are reserved. Piece i of that order is the i-th best merge, so
the merge rules follow from the vocabulary itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from checkpoint_files import write_json

FIRST_BYTE = 3
FIRST_PIECE = FIRST_BYTE + 256
SPACE = "\u2581"
RESERVED = re.compile(r"<<ST_\d+>>")


def read_pieces(data: bytes) -> list[bytes]:
    """The pieces, by id. Each has a length before it: one byte, or two (base 128) from 128 on."""
    pieces: list[bytes] = []
    at = 0
    while at < len(data):
        length = data[at]
        at += 1
        if length >= 128:
            length += 128 * (data[at] - 1)
            at += 1
        pieces.append(data[at : at + length])
        at += length
    return pieces


def write_tokenizer(folder: Path, pieces: list[bytes]) -> None:
    """`tokenizer.json` and `tokenizer_config.json`.

    Decoding joins the pieces, turns U+2581 into spaces and drops the one space at the start;
    runs of byte tokens become the character that they spell, and U+FFFD a byte if they spell none.
    """
    tokens = _token_texts(pieces)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    special = [n for n, token in enumerate(tokens) if n < FIRST_BYTE or RESERVED.fullmatch(token)]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, tokens[number]) for number in special],
        "normalizer": _normalizer(),
        "pre_tokenizer": None,
        "post_processor": _post_processor(),
        "decoder": _decoder(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _merges(vocabulary, set(special)),
        },
    }
    write_json(folder / "tokenizer.json", content, indent=None)
    write_json(folder / "tokenizer_config.json", _config())


def _token_texts(pieces: list[bytes]) -> list[str]:
    """Text of every token; a single byte is spelled `<0xNN>`, which is what byte fallback reads."""
    texts = [piece.decode() for piece in pieces[:FIRST_BYTE]]
    texts += [f"<0x{piece[0]:02X}>" for piece in pieces[FIRST_BYTE:FIRST_PIECE]]
    return texts + [piece.decode() for piece in pieces[FIRST_PIECE:]]


def _merges(vocabulary: dict[str, int], special: set[int]) -> list[list[str]]:
    """Every way to split a piece into two pieces, best merge first.

    Single characters come after all merged pieces in the vocabulary and split no further.
    """
    merges: list[list[str]] = []
    for token, number in vocabulary.items():
        if number < FIRST_PIECE or number in special:
            continue
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
        known.sort(key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))
        merges += [list(cut) for cut in known]
    return merges


def _added(number: int, token: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **flags, "special": True}


def _normalizer() -> dict[str, Any]:
    return {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        ],
    }


def _post_processor() -> dict[str, Any]:
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, second],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }


def _decoder() -> dict[str, Any]:
    return {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }


def _config() -> dict[str, Any]:
    return {
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 194,
        "pad_token": "</s>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }

"""Tokenizer and chat template of a checkpoint, as the bundle holds them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from edgemm.bundle.spec import ChatSpec, TextSpec
from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint


def tokenizer_files(checkpoint: Checkpoint) -> tuple[TextSpec, dict[str, bytes]]:
    """The fast tokenizer's file, as the bundle holds it: without what only people's eyes need."""
    path = checkpoint.path / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint.path} has no tokenizer.json",
            hint="save the fast tokenizer beside the weights: AutoTokenizer.from_pretrained(…).save_pretrained",
        )
    return TextSpec(tokenizer="tokenizer.json"), {"tokenizer.json": compact(path.read_bytes())}


def compact(tokenizer: bytes) -> bytes:
    """A `tokenizer.json` on one line, without merges that never happen, the others in short ("a b" for ["a", "b"])."""
    try:
        content = json.loads(tokenizer)
    except ValueError:
        return tokenizer  # whoever reads it says what is wrong with it
    model = content.get("model") if isinstance(content, dict) else None
    merges = model.get("merges") if isinstance(model, dict) else None
    if isinstance(model, dict) and isinstance(merges, list) and all(map(_is_plain_pair, merges)):
        model["merges"] = [" ".join(pair) for pair in _that_happen(model, merges)]
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _is_plain_pair(merge: object) -> bool:
    return isinstance(merge, list) and len(merge) == 2 and not any(" " in part for part in merge)


def chat_spec(checkpoint: Checkpoint) -> ChatSpec:
    """The checkpoint's own chat template (chat_template.jinja, or inside a JSON file) and its special tokens."""
    settings = checkpoint.json("tokenizer_config.json")
    file = checkpoint.path / "chat_template.jinja"
    template = (
        file.read_text()
        if file.is_file()
        else checkpoint.json("chat_template.json").get("chat_template")
        or checkpoint.json("processor_config.json").get("chat_template")
        or settings.get("chat_template")
    )
    if not template:
        raise CheckpointError(
            f"{checkpoint.path} has no chat template",
            hint="copy chat_template.jinja from the model that was fine-tuned",
        )
    special = {
        k: v["content"] if isinstance(v, dict) else str(v)
        for k, v in settings.items()
        if k in ("bos_token", "eos_token", "pad_token", "unk_token") and v
    }
    return ChatSpec(template=template, special_tokens=special)


def _that_happen(model: dict[str, Any], merges: list[list[str]]) -> list[list[str]]:
    """The merges without those of a token's other cuts, which converters of SentencePiece list too.

    What merges inside a stretch of text, before anything crosses its edges, does not depend on what is around it: so a
    token is always made by the merge that makes it where it stands alone.
    """
    plain = not any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"))
    made = {left + right for left, right in merges}
    if not plain or len(made) == len(merges):
        return merges
    ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
    kept = {_last_merge(token, ranks) for token in made}
    return [pair for pair in merges if tuple(pair) in kept]


def _last_merge(token: str, ranks: dict[tuple[str, str], int]) -> tuple[str, str] | None:
    """The merge that makes `token` of its characters, the lowest rank and then the leftmost place first."""
    parts, pair = list(token), None
    while len(parts) > 1:
        found = [(ranks[p], i) for i, p in enumerate(pairwise(parts)) if p in ranks]
        if not found:
            return None
        place = min(found)[1]
        pair = (parts[place], parts[place + 1])
        parts[place : place + 2] = ["".join(pair)]
    return pair

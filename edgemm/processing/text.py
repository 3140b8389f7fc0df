"""Text ↔ token ids, by the bundle's own `tokenizer.json`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgemm.bundle.spec import TextSpec
from edgemm.errors import BundleError, InputError

_HALF = "\ufffd"
_CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def clean_up(text: str) -> str:
    """`text` without the spaces before punctuation and English contractions that tokenizers leave."""
    for found, wanted in _CLEAN_UP:
        text = text.replace(found, wanted)
    return text


class Tokenizer:
    """A Hugging Face fast tokenizer, without transformers. Safe to share between threads."""

    def __init__(self, file: str | os.PathLike[str], spec: TextSpec | None = None) -> None:
        """Reads `tokenizer.json`. Raises `BundleError` where it is missing or not one."""
        import tokenizers

        self.spec = spec or TextSpec(tokenizer="tokenizer.json")
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(Path(file).read_text("utf-8"))
        except Exception as error:  # tokenizers raises no narrower one
            raise BundleError(
                f"{file} is not a tokenizer that can be read: {str(error).splitlines()[0]}",
                hint="export the bundle again",
            ) from error
        # A stored limit would cut prompts without a word.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @classmethod
    def from_bundle(cls, root: str | os.PathLike[str], spec: TextSpec) -> Tokenizer:
        """The tokenizer that `spec` names inside the bundle at `root`."""
        return cls(Path(root) / spec.tokenizer, spec)

    @property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def id_of(self, token: str) -> int:
        """The id of one token's exact string. Raises `InputError` for an unknown one."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise InputError(f"the tokenizer has no token {token!r}")
        return int(found)

    def token_of(self, token_id: int) -> str | None:
        """The raw string of an id, None for an unknown one."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def cut_at(self, tokens: int) -> None:
        """From now on `encode` gives at most `tokens` ids, those of added special tokens among them."""
        self._tokenizer.enable_truncation(max_length=tokens)

    def encode(self, text: str, *, specials: bool | None = None) -> list[int]:
        """Ids of `text`; special tokens written in it are recognised, others added if `specials`.

        `specials` defaults to the manifest's `add_special_tokens`.
        """
        add = self.spec.add_special_tokens if specials is None else specials
        return list(self._tokenizer.encode(text, add_special_tokens=add).ids)

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
        """Text of `ids`, cleaned up and stripped as the manifest says."""
        text = self._plain(ids, skip_specials)
        if self.spec.clean_up:
            text = clean_up(text)
        return text.strip() if self.spec.strip else text

    def _plain(self, ids: Sequence[int], skip_specials: bool) -> str:
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_specials))

    def stream(self, *, skip_specials: bool = True) -> TextStream:
        """A decoder for ids that arrive one by one."""
        return TextStream(self, skip_specials)


class TextStream:
    """Text as it grows: the joined pieces equal the plain decoding (before clean-up and strip).

    A piece is held back while it ends in half a UTF-8 character. Each step decodes only the ids
    since the last whole piece and the one before it, whose presence decides about a leading space.
    """

    def __init__(self, tokenizer: Tokenizer, skip_specials: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_specials
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token_id: int) -> str:
        """The text that this id completes, often one word piece, possibly nothing."""
        self._ids.append(int(token_id))
        return self._emit(final=False)

    def finish(self) -> str:
        """What is still held back, with U+FFFD for a character that never became whole."""
        text = self._emit(final=True)
        self._ids, self._shown = [], 0
        return text

    def _emit(self, *, final: bool) -> str:
        before = self._tokenizer._plain(self._ids[: self._shown], self._skip)
        text = self._tokenizer._plain(self._ids, self._skip)
        if len(text) <= len(before) or (text.endswith(_HALF) and not final):
            return ""
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return text[len(before) :]

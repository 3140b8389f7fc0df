"""How to generate: what a caller may choose, and what is left to the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from edgemm.errors import InputError


class GenerationKeywords(TypedDict, total=False):
    """The fields of `Generation`, for functions that also take them one by one."""

    max_new_tokens: int | None
    min_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int
    beams: int | None
    length_penalty: float | None
    repetition_penalty: float | None
    no_repeat_ngram: int | None
    stop: str | tuple[str, ...] | list[str]
    schema: Mapping[str, Any] | None


@dataclass(frozen=True)
class Generation:
    """How to generate. None is what the checkpoint's generation_config.json says, sampling apart.

    Generation is greedy, or by the checkpoint's beams, unless `temperature`, `top_k` or `top_p` is given: then tokens
    are drawn with `seed`, from the `top_k` likeliest (0: all) inside the nucleus `top_p`; which of the three is left
    open follows the checkpoint's own sampling. A `temperature` of 0 is greedy whatever else is given. With `beams`
    over 1 the best of that many sentences is searched, by mean log-probability to the power of `length_penalty`.

    `stop` are strings that end the text, themselves left out of it. `schema` is a JSON schema: the answer is JSON of
    it, if `max_new_tokens` suffice (needs the extra `guided`). Where drawing or a schema is asked for, beams that
    only the checkpoint wants are not searched.

    Raises InputError for a value out of range and for what contradicts itself.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    beams: int | None = None
    length_penalty: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram: int | None = None
    stop: str | tuple[str, ...] | list[str] = ()
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} {value} is out of range: expected {low:g} to {high:g}")
        beams = self.beams or 1
        problems = [
            ((self.min_new_tokens or 0) > _or(self.max_new_tokens, 1 << 20), "min_new_tokens is above max_new_tokens"),
            (not all(isinstance(stop, str) and stop for stop in self.stop), "a stop string is empty or no text"),
            (beams > 1 and self.draws, "beams contradict temperature, top_k and top_p"),
            (beams > 1 and self.schema is not None, "beams contradict a schema"),
        ]
        for wrong, message in problems:
            if wrong:
                raise InputError(message, hint="give one of them, or other values")

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        asked = (self.temperature, self.top_k, self.top_p)
        return self.temperature != 0 and any(value is not None for value in asked)

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the fields that differ from the checkpoint's."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != f.default)


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


_TINY = 1e-6
_RANGES: dict[str, tuple[float, float]] = {
    "max_new_tokens": (0, 1 << 20),
    "min_new_tokens": (0, 1 << 20),
    "temperature": (0, 100),
    "top_k": (0, 1 << 24),
    "top_p": (_TINY, 1),
    "seed": (0, (1 << 64) - 1),
    "beams": (1, 64),
    "length_penalty": (-100, 100),
    "repetition_penalty": (_TINY, 100),
    "no_repeat_ngram": (0, 1024),
}
AS_TRAINED = Generation()


def chosen(generation: Generation | None, keywords: GenerationKeywords) -> Generation:
    """`generation` with `keywords` over it. Raises InputError for an unknown keyword."""
    unknown = sorted(set(keywords) - {f.name for f in fields(Generation)})
    if unknown:
        raise InputError(
            f"there is no generation option {unknown[0]!r}",
            hint=f"there are: {', '.join(f.name for f in fields(Generation))}",
        )
    return replace(generation or AS_TRAINED, **keywords)

"""What a caller asked for and what the checkpoint says → the options of one generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from edgemm.bundle.spec import GenerationSpec, SamplingSpec
from edgemm.decoding.generate import GenerationOptions
from edgemm.decoding.options import Generation
from edgemm.errors import ContextFull

T = TypeVar("T")


def settled(
    asked: Generation, spec: GenerationSpec, eos: tuple[int, ...], prompt: Sequence[int], **more: Any
) -> GenerationOptions:
    """The options of a generation after `prompt` (the decoder's ids so far); `more` goes to them as it is.

    Raises ContextFull where the checkpoint's `max_length` leaves no room behind the prompt.
    """
    most = _most(asked, spec, len(prompt))
    least = _or(asked.min_new_tokens, max(0, spec.min_new_tokens, spec.min_length - len(prompt)))
    drawn = asked.draws
    own = spec.sampling or SamplingSpec()
    # What was asked for goes before what the checkpoint would do.
    beams = 1 if drawn or asked.schema is not None else _or(asked.beams, spec.num_beams)
    return GenerationOptions(
        max_new_tokens=most,
        min_new_tokens=min(least, most),
        eos=eos,
        temperature=_or(asked.temperature, own.temperature) if drawn else 0.0,
        top_k=_or(asked.top_k, own.top_k),
        top_p=_or(asked.top_p, own.top_p),
        seed=asked.seed,
        beams=beams,
        length_penalty=_or(asked.length_penalty, spec.length_penalty),
        early_stopping=spec.early_stopping,
        repetition_penalty=_or(asked.repetition_penalty, spec.repetition_penalty),
        no_repeat_ngram=_or(asked.no_repeat_ngram, spec.no_repeat_ngram_size),
        prompt=tuple(prompt),
        suppress=spec.suppress_tokens,
        begin_suppress=spec.begin_suppress_tokens,
        **more,
    )


def _most(asked: Generation, spec: GenerationSpec, prompt: int) -> int:
    if asked.max_new_tokens is not None:
        return asked.max_new_tokens
    if spec.max_length is None:
        return max(spec.max_new_tokens, asked.min_new_tokens or 0)
    if spec.max_length <= prompt:
        raise ContextFull(
            f"the prompt has {prompt} tokens, the checkpoint's generation_config allows {spec.max_length} in all",
            hint="give max_new_tokens",
        )
    return max(min(spec.max_new_tokens, spec.max_length - prompt), asked.min_new_tokens or 0)


def _or(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value

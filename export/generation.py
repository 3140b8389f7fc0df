"""A checkpoint's generation_config.json → the manifest's `generation`."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from edgemm.bundle.spec import GenerationSpec, SamplingSpec
from edgemm.errors import CheckpointError

CHAT_TOKENS = 256
_SAME = (
    "min_new_tokens", "min_length", "num_beams", "early_stopping", "length_penalty", "repetition_penalty",
    "no_repeat_ngram_size",
)  # fmt: skip


def generation_spec(config: Any, *, otherwise: int = CHAT_TOKENS, **more: Any) -> GenerationSpec:
    """What a transformers `GenerationConfig` says; `more` are fields that the family knows better.

    `otherwise` is the limit of a checkpoint that has none: transformers' own, 20 tokens in all, would cut sentences.
    Raises CheckpointError for values that no manifest holds.
    """
    # Older versions fill what is not said with their defaults, which the difference leaves out.
    said = {k: v for k, v in config.to_diff_dict().items() if v is not None}
    values: dict[str, Any] = {name: said[name] for name in _SAME if name in said}
    if "max_new_tokens" in said:
        values["max_new_tokens"] = said["max_new_tokens"]
    elif "max_length" in said:
        values |= {"max_length": said["max_length"], "max_new_tokens": said["max_length"]}
    else:
        values["max_new_tokens"] = otherwise
    try:
        return GenerationSpec(**(values | {"sampling": _sampling(said)} | more))
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"generation_config.json: {'.'.join(map(str, first['loc']))} is {first['input']!r}: {first['msg']}",
            hint="mend the file",
        ) from error


def _sampling(said: dict[str, Any]) -> SamplingSpec | None:
    if not said.get("do_sample"):
        return None
    # transformers draws from the 50 likeliest where the file does not say.
    return SamplingSpec(**{"top_k": 50} | {k: said[k] for k in ("temperature", "top_k", "top_p") if k in said})

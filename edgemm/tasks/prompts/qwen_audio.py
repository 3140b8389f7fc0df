"""Qwen2-Audio: sounds in a chat, each as many placeholder tokens as its log-mel frames become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import LogMelSpec
from edgemm.errors import BundleError, InputError
from edgemm.processing.chat import render
from edgemm.processing.features import AudioInput, log_mel
from edgemm.tasks.prompts.base import Arrays, Context, Media, Message, Prompt, bare, parts_of


def prompt(messages: Sequence[Message], context: Context) -> Prompt:
    """Twin of transformers' `Qwen2AudioProcessor`. Raises InputError for a picture, or a sound that is too long."""
    spec, token = context.processing.audio, context.tokens.audio
    if not isinstance(spec, LogMelSpec) or token is None:
        raise BundleError("the model lacks its log-mel settings or its audio token", hint="export it again")
    if parts_of(messages, "image") or parts_of(messages, "video"):
        raise InputError("this model hears and does not see", hint="give sound and words only")
    sounds = [_heard(part["audio"], spec) for part in parts_of(messages, "audio")]
    ids = context.encode(render(bare(messages), context.chat))
    if ids.count(token) != len(sounds):
        raise InputError(
            f"the prompt has {ids.count(token)} placeholders for {len(sounds)} sounds",
            hint="give one audio part for every one, and no placeholder in the text",
        )
    counts = iter([feature_count(sound) for sound in sounds])
    full = [i for one in ids for i in ([one] * next(counts) if one == token else [one])]
    return Prompt(full, tuple(Media("audio_encoder", encoder_feeds(s), token, _pack(s)) for s in sounds))


def _heard(samples: NDArray[np.float32], spec: LogMelSpec) -> AudioInput:
    longest = round(spec.chunk_s * spec.sample_rate_hz)
    if len(samples) > longest:
        raise InputError(
            f"the sound lasts {len(samples) / spec.sample_rate_hz:.1f} s: expected at most {spec.chunk_s:g} s",
            hint="cut it at pauses and give each stretch as a sound of its own",
        )
    heard = log_mel(samples, spec)
    if feature_count(heard) < 1:
        raise InputError("the sound is too short: expected at least 30 ms")
    return heard


def _halved(sound: AudioInput) -> int:
    return (int(sound.attention_mask.sum()) - 1) // 2 + 1


def feature_count(sound: AudioInput) -> int:
    """Tokens of a sound: its frames, halved by a convolution and again by pooling."""
    return (_halved(sound) - 2) // 2 + 1


def encoder_feeds(sound: AudioInput) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
    """The encoder's inputs: `input_features [1, mels, frames]`, `attention_mask [1, frames / 2]`."""
    mask = (np.arange(sound.values.shape[2] // 2) < _halved(sound)).astype(np.int64)[None]
    return {"input_features": sound.values, "attention_mask": mask}


class _pack:
    """The features of the sound itself, without those of the silence behind it."""

    def __init__(self, sound: AudioInput) -> None:
        self.count = feature_count(sound)

    def __call__(self, outputs: Mapping[str, NDArray[np.float32]] | Arrays) -> NDArray[np.float32]:
        return outputs["audio_features"][:, : self.count]

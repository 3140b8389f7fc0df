"""What the device side must know of a checkpoint: `processing`, `tokens`, `generation`.

A manifest is outside text, so every field is bounded and unknown fields are refused. The exporter
fills these models from the checkpoint's own configuration files; `edgemm.processing` reads them and
holds no constant of its own.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Resample = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]


def _inside_bundle(path: str) -> str:
    """A relative POSIX path that cannot leave the bundle."""
    pure = PurePosixPath(path)
    unsafe = pure.is_absolute() or ".." in pure.parts or not pure.parts
    if unsafe or "\\" in path or "\0" in path or ":" in path:
        raise ValueError(f"{path!r} is not a path inside the bundle: expected a relative one without '..'")
    return path


TokenId = Annotated[int, Field(ge=0, lt=1 << 24)]
TokenIds = Annotated[tuple[TokenId, ...], Field(max_length=4096)]
EdgePx = Annotated[int, Field(ge=1, le=16384)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
NonZero = Annotated[float, Field(gt=0.0, lt=1e6, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)]
Literal64 = Annotated[str, Field(min_length=1, max_length=64)]
BundlePath = Annotated[str, Field(max_length=255), AfterValidator(_inside_bundle)]


class Spec(BaseModel):
    """Base of every manifest section: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Normalization(Spec):
    """`(pixel * rescale_factor - mean) / std` per RGB channel, on 8-bit pixels."""

    rescale_factor: Positive = 1 / 255
    mean: tuple[Finite, Finite, Finite] = (0.0, 0.0, 0.0)
    std: tuple[NonZero, NonZero, NonZero] = (1.0, 1.0, 1.0)


class ResizeCropSpec(Normalization):
    """One picture → one `[1, 3, height_px, width_px]` tensor.

    `fit`: `stretch` ignores the aspect ratio; `crop_then_resize` cuts the centred rectangle of the
    output's aspect that is `crop_fraction` of the largest possible one, then resizes it
    (TensorFlow's evaluation crop); `resize_then_crop` resizes so that the output fills
    `crop_fraction` of the picture, then cuts the centre (torchvision's `Resize` + `CenterCrop`).
    """

    kind: Literal["resize_crop"] = "resize_crop"
    height_px: EdgePx
    width_px: EdgePx
    fit: Literal["stretch", "crop_then_resize", "resize_then_crop"] = "stretch"
    resample: Resample = "bicubic"
    crop_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class TilesSpec(Normalization):
    """One picture → its tiles and the whole picture, each `max_image_size` squared.

    The scheme of Idefics3 and SmolVLM: the longest edge is resized to `longest_edge`, both edges
    are rounded up to multiples of `max_image_size`, and the result is cut into tiles.
    """

    kind: Literal["tiles"] = "tiles"
    longest_edge: EdgePx
    max_image_size: Annotated[int, Field(ge=8, le=4096)]
    do_image_splitting: bool = True
    resample: Resample = "lanczos"
    image_seq_len: Annotated[int, Field(ge=1, le=65536)]

    @model_validator(mode="after")
    def _bounded_tiles(self) -> Self:
        tiles = (-(-self.longest_edge // self.max_image_size)) ** 2
        if tiles > 1024:
            raise ValueError(
                f"longest_edge {self.longest_edge} with max_image_size {self.max_image_size} makes "
                f"up to {tiles} tiles: expected at most 1024"
            )
        return self


ImageSpec = Annotated[ResizeCropSpec | TilesSpec, Field(discriminator="kind")]


class RawAudioSpec(Spec):
    """Waveform models: `input_values [1, samples]`.

    `normalize` makes zero mean and unit variance (wav2vec 2.0); `pad_to_multiple` is in samples.
    Shorter input than `min_s` is padded with silence, longer than `max_s` is refused.
    """

    kind: Literal["raw"] = "raw"
    sample_rate_hz: Annotated[int, Field(ge=1000, le=384_000)] = 16_000
    normalize: bool = False
    min_s: Annotated[float, Field(ge=0.0, le=3600.0)] = 0.0
    max_s: Annotated[float, Field(gt=0.0, le=36_000.0)] = 64.0
    pad_to_multiple: Annotated[int, Field(ge=1, le=1 << 20)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_s > self.max_s:
            raise ValueError(f"min_s {self.min_s} exceeds max_s {self.max_s}")
        return self


class LogMelSpec(Spec):
    """Whisper's log-mel spectrogram: `input_features [1, n_mels, chunk_s · sample_rate_hz / hop]`.

    Values are `(max(log10(max(mel, floor)), peak - dynamic_range) + offset) / scale`.
    """

    kind: Literal["log_mel"] = "log_mel"
    sample_rate_hz: Annotated[int, Field(ge=1000, le=384_000)] = 16_000
    n_mels: Annotated[int, Field(ge=1, le=512)] = 80
    n_fft: Annotated[int, Field(ge=16, le=16_384)] = 400
    hop: Annotated[int, Field(ge=1, le=16_384)] = 160
    chunk_s: Annotated[float, Field(gt=0.0, le=600.0)] = 30.0
    min_hz: Annotated[float, Field(ge=0.0, le=192_000.0)] = 0.0
    max_hz: Annotated[float, Field(gt=0.0, le=192_000.0)] = 8000.0
    floor: Positive = 1e-10
    dynamic_range: Positive = 8.0
    offset: Annotated[float, Field(ge=-1000.0, le=1000.0)] = 4.0
    scale: Positive = 4.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_hz >= self.max_hz:
            raise ValueError(f"min_hz {self.min_hz} is not below max_hz {self.max_hz}")
        if self.hop > self.n_fft:
            raise ValueError(f"hop {self.hop} exceeds n_fft {self.n_fft}: samples would be skipped")
        if self.chunk_s * self.sample_rate_hz < self.n_fft:
            raise ValueError(f"chunk_s {self.chunk_s} is shorter than n_fft {self.n_fft} samples")
        return self


AudioSpec = Annotated[RawAudioSpec | LogMelSpec, Field(discriminator="kind")]


class TextSpec(Spec):
    """The tokenizer file (`tokenizer.json`) in the bundle, and how its ids become text."""

    tokenizer: BundlePath
    add_special_tokens: bool = False
    clean_up: bool = False
    strip: bool = False


class ChatSpec(Spec):
    """The chat template, the special tokens that it names, and the placeholders of pictures."""

    template: Annotated[str, Field(min_length=1, max_length=200_000)]
    special_tokens: Annotated[dict[Literal64, str], Field(max_length=64)] = {}
    image_token: Literal64 = "<image>"
    fake_image_token: Literal64 = "<fake_token_around_image>"
    global_image_token: Literal64 = "<global-img>"
    audio_token: Literal64 | None = None


class TokensSpec(Spec):
    """The manifest's `tokens`: special ids. `decoder_start` begins an encoder–decoder's output."""

    vocab_size: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    bos: TokenId | None = None
    eos: TokenIds = ()
    pad: TokenId | None = None
    unk: TokenId | None = None
    decoder_start: TokenId | None = None
    image: TokenId | None = None
    audio: TokenId | None = None
    video: TokenId | None = None


class TimestampSpec(Spec):
    """Whisper's time tokens: id `begin + n` means `n · precision_s` seconds into the chunk."""

    begin: TokenId
    precision_s: Annotated[float, Field(gt=0.0, le=10.0)] = 0.02
    no_timestamps: TokenId | None = None
    max_initial: Annotated[int, Field(ge=0, le=100_000)] | None = 50


class GenerationSpec(Spec):
    """The manifest's `generation` section: limits, suppressed ids, the prompt of speech models.

    `max_tokens_per_s` bounds the output by the length of the sound (Moonshine), `max_positions` by
    the decoder. The forced prompt of Whisper is `decoder_start`, `languages[code]`, `tasks[name]`,
    `timestamps.no_timestamps`; an English-only checkpoint has no `languages` and no `tasks`.
    `alignment_heads` are (layer, head) pairs.
    """

    max_new_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    max_positions: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    max_tokens_per_s: Positive | None = None
    suppress_tokens: TokenIds = ()
    begin_suppress_tokens: TokenIds = ()
    forced_ids: TokenIds = ()
    tasks: Annotated[dict[Literal64, TokenId], Field(max_length=64)] = {}
    languages: Annotated[dict[Literal64, TokenId], Field(max_length=1024)] = {}
    default_task: Literal64 | None = None
    default_language: Literal64 | None = None
    timestamps: TimestampSpec | None = None
    no_speech: TokenId | None = None
    start_of_previous: TokenId | None = None
    temperatures: Annotated[tuple[Annotated[float, Field(ge=0.0, le=2.0)], ...], Field(max_length=16)] = (0.0,)
    alignment_heads: Annotated[
        tuple[tuple[Annotated[int, Field(ge=0, le=1024)], Annotated[int, Field(ge=0, le=1024)]], ...],
        Field(max_length=1024),
    ] = ()

    @model_validator(mode="after")
    def _defaults_exist(self) -> Self:
        for name, table in (("default_task", self.tasks), ("default_language", self.languages)):
            value = getattr(self, name)
            if value is not None and value not in table:
                raise ValueError(f"{name} {value!r} is not one of {sorted(table)}")
        return self

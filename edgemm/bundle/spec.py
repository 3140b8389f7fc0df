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


def _odd(width: int) -> int:
    if width % 2 == 0:
        raise ValueError(f"{width} is even, a middle needs an odd number")
    return width


TokenId = Annotated[int, Field(ge=0, lt=1 << 24)]
TokenIds = Annotated[tuple[TokenId, ...], Field(max_length=4096)]
EdgePx = Annotated[int, Field(ge=1, le=16384)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
NonZero = Annotated[float, Field(gt=0.0, lt=1e6, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)]
Literal64 = Annotated[str, Field(min_length=1, max_length=64)]
Byte = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]
OddWidth = Annotated[int, Field(ge=1, le=1023), AfterValidator(_odd)]
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
    With `square_fill` (RGB) the picture first becomes a square, its shorter edge filled on both sides.
    `image_seq_len` is how many tokens stand for one picture in a prompt.
    """

    kind: Literal["resize_crop"] = "resize_crop"
    height_px: EdgePx
    width_px: EdgePx
    fit: Literal["stretch", "crop_then_resize", "resize_then_crop"] = "stretch"
    resample: Resample = "bicubic"
    crop_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    square_fill: Colour | None = None
    image_seq_len: Annotated[int, Field(ge=1, le=65536)] | None = None


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


class AnyresSpec(Normalization):
    """One picture → the whole at `tile_px` squared, then its tiles: the scheme of LLaVA-OneVision.

    The picture is fitted into the one of `pinpoints` (height, width) that keeps most of it, centred on black, and cut.
    Features of its tiles are joined to one map of `side` per tile, which loses the black edges, shrinks
    where it holds more than `max_tiles` tiles, and gets one more column. Several pictures of one prompt are not cut:
    each is filled up to a square with `square_fill`.
    """

    kind: Literal["anyres"] = "anyres"
    tile_px: Annotated[int, Field(ge=8, le=4096)]
    side: Annotated[int, Field(ge=1, le=256)]
    pinpoints: Annotated[tuple[tuple[EdgePx, EdgePx], ...], Field(min_length=1, max_length=256)]
    max_tiles: Annotated[int, Field(ge=1, le=1024)] = 9
    square_fill: Colour
    resample: Resample = "bicubic"

    @model_validator(mode="after")
    def _whole_tiles(self) -> Self:
        odd = [p for p in self.pinpoints if p[0] % self.tile_px or p[1] % self.tile_px]
        if odd:
            raise ValueError(f"pinpoints {odd[:3]} are not whole tiles of {self.tile_px} px")
        return self


class NaFlexSpec(Normalization):
    """One picture → its patches, at most `max_patches`, its own aspect kept (SigLIP 2's NaFlex).

    `pixel_values [1, max_patches, patch_px² · 3]`, padded, with `pixel_mask`; the position table of `grid` squared
    patches is resized to the picture's patches by weights that the host computes.
    """

    kind: Literal["naflex"] = "naflex"
    patch_px: Annotated[int, Field(ge=1, le=512)] = 16
    max_patches: Annotated[int, Field(ge=1, le=65_536)] = 256
    grid: Annotated[int, Field(ge=1, le=256)] = 16
    resample: Resample = "bilinear"


class EdgesSpec(Normalization):
    """One picture, its shape kept, by its edges: the scheme of DETR's and YOLOS' processors.

    The shorter edge becomes `shortest_edge`, unless the longer one would exceed `longest_edge`, which then it
    becomes; both are cut down to multiples of `multiple_px`. With `canvas_px` (height, width) the result lies in the
    upper left of a canvas of zeros (after normalisation), and `pixel_mask` is true on the picture. Without
    `shortest_edge` the picture becomes the largest one that fits the canvas.
    """

    kind: Literal["edges"] = "edges"
    shortest_edge: EdgePx | None = None
    longest_edge: EdgePx
    multiple_px: Annotated[int, Field(ge=1, le=256)] = 1
    canvas_px: tuple[EdgePx, EdgePx] | None = None
    resample: Resample = "bilinear"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.shortest_edge is None and self.canvas_px is None:
            raise ValueError("edges without a shortest_edge: expected a canvas_px to fit the picture into")
        if self.shortest_edge is not None and self.canvas_px is not None and min(self.canvas_px) < self.longest_edge:
            raise ValueError(f"canvas_px {self.canvas_px} is smaller than longest_edge {self.longest_edge}")
        return self


class PatchesSpec(Normalization):
    """One picture → its patches `[patches, 3 · temporal_patch · patch_px²]`, its own aspect kept: Qwen's scheme.

    Both edges become multiples of `patch_px · merge` with `min_pixels` to `max_pixels` in all, and `merge` squared
    patches become one token. Of a video, `temporal_patch` frames are one chunk; its limits are `video_*_pixels`, of
    each frame or of the whole clip. `rotary_dim` and `rotary_theta` are those of the tower. `window` is the edge of
    its attention windows in tokens, `position_side` the edge of its learned table of positions. `tokens_per_s` is
    what a second of video moves the temporal position by (None: each chunk moves it by 1).
    """

    kind: Literal["patches"] = "patches"
    patch_px: Annotated[int, Field(ge=1, le=512)]
    merge: Annotated[int, Field(ge=1, le=16)] = 2
    temporal_patch: Annotated[int, Field(ge=1, le=16)] = 2
    min_pixels: Annotated[int, Field(ge=1, le=1 << 28)]
    max_pixels: Annotated[int, Field(ge=1, le=1 << 28)]
    resample: Resample = "bicubic"
    video_min_pixels: Annotated[int, Field(ge=1, le=1 << 28)]
    video_max_pixels: Annotated[int, Field(ge=1, le=1 << 28)]
    video_budget: Literal["frame", "clip"] = "frame"
    rotary_dim: Annotated[int, Field(ge=4, le=4096, multiple_of=4)]
    rotary_theta: Positive = 10_000.0
    window: Annotated[int, Field(ge=1, le=256)] | None = None
    position_side: Annotated[int, Field(ge=1, le=1024)] | None = None
    tokens_per_s: Positive | None = None

    @model_validator(mode="after")
    def _ordered_pixels(self) -> Self:
        for low, high in ((self.min_pixels, self.max_pixels), (self.video_min_pixels, self.video_max_pixels)):
            if low > high:
                raise ValueError(f"at least {low} pixels exceeds at most {high}")
        return self


ImageSpec = Annotated[
    ResizeCropSpec | EdgesSpec | TilesSpec | AnyresSpec | NaFlexSpec | PatchesSpec,
    Field(discriminator="kind"),
]


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


class KaldiMelSpec(Spec):
    """Kaldi's log-mel filter banks, as AST takes them: `input_features [1, n_mels, frames]`.

    Frames of `window` samples lose their mean, are pre-emphasised and windowed (Hann); sound that is too short or
    too long is padded with zeros or cut to `frames`. Values are `(log(mel) - mean) / (2 · std)`.
    """

    kind: Literal["kaldi_mel"] = "kaldi_mel"
    sample_rate_hz: Annotated[int, Field(ge=1000, le=384_000)] = 16_000
    n_mels: Annotated[int, Field(ge=1, le=512)] = 128
    frames: Annotated[int, Field(ge=1, le=65_536)] = 1024
    window: Annotated[int, Field(ge=2, le=16_384)] = 400
    hop: Annotated[int, Field(ge=1, le=16_384)] = 160
    n_fft: Annotated[int, Field(ge=16, le=16_384)] = 512
    min_hz: Annotated[float, Field(ge=0.0, le=192_000.0)] = 20.0
    pre_emphasis: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.97
    floor: Positive = 1.192092955078125e-07
    mean: Finite = 0.0
    std: NonZero = 0.5


class RepeatMelSpec(Spec):
    """CLAP's log-mel spectrogram: `input_features [1, n_mels, 1 + chunk_s · sample_rate_hz / hop]`, in decibels.

    `fill` says what makes short sound last `chunk_s`: it is repeated as often as it fits and then padded with
    silence, repeated and cut, or only padded. Of longer sound the first `chunk_s` count.
    """

    kind: Literal["repeat_mel"] = "repeat_mel"
    sample_rate_hz: Annotated[int, Field(ge=1000, le=384_000)] = 48_000
    n_mels: Annotated[int, Field(ge=1, le=512)] = 64
    n_fft: Annotated[int, Field(ge=16, le=16_384)] = 1024
    hop: Annotated[int, Field(ge=1, le=16_384)] = 480
    chunk_s: Annotated[float, Field(gt=0.0, le=600.0)] = 10.0
    min_hz: Annotated[float, Field(ge=0.0, le=192_000.0)] = 50.0
    max_hz: Annotated[float, Field(gt=0.0, le=192_000.0)] = 14_000.0
    fill: Literal["repeatpad", "repeat", "pad"] = "repeatpad"


AudioSpec = Annotated[RawAudioSpec | LogMelSpec | KaldiMelSpec | RepeatMelSpec, Field(discriminator="kind")]


class VideoSpec(Spec):
    """A clip: `frames` pictures spread evenly over it, each processed as the `image` section says."""

    frames: Annotated[int, Field(ge=1, le=4096)]


class MemorySpec(Spec):
    """What a memory holds of 1 to `frames` pictures (more are thinned out evenly) beside what their cells show.

    The `concepts` likeliest classes, and of every picture up to `finds` objects, or `finds_in_clips` where there are
    several pictures, the surest first, with what follows of each from all others (`edgemm.processing.objects`).
    `frame_period_s` is assumed where pictures come without times. With `plain_questions` a question is brought into the
    form of those that the model was trained on: lower case, no marks but a question mark at the end.
    """

    frames: Annotated[int, Field(ge=1, le=1024)] = 8
    concepts: Annotated[int, Field(ge=0, le=4096)]
    finds: Annotated[int, Field(ge=1, le=4096)]
    finds_in_clips: Annotated[int, Field(ge=1, le=4096)]
    frame_period_s: Positive = 0.5
    plain_questions: bool = True


class SimilaritySpec(Spec):
    """How a dual encoder scores a pair: `scale · cosine + bias`, then `function` over the labels.

    `template` makes a label a sentence: `{}` is the label. `text_tokens` is where texts are cut; with `pad_texts`
    shorter ones are padded to it with `pad`, on `padding_side`, else the texts of a batch to the longest; with
    `lower_case` they are lower-cased first.
    """

    scale: Finite = 1.0
    bias: Finite = 0.0
    function: Literal["softmax", "sigmoid"] = "softmax"
    template: Annotated[str, Field(min_length=2, max_length=1000)] = "This is a photo of {}."
    text_tokens: Annotated[int, Field(ge=1, le=65_536)] = 77
    pad_texts: bool = False
    lower_case: bool = False
    pad: TokenId = 0
    padding_side: Literal["left", "right"] = "right"

    @model_validator(mode="after")
    def _has_place(self) -> Self:
        if "{}" not in self.template:
            raise ValueError(f"the template {self.template!r} has no {{}} for the label")
        return self


class CtcSpec(Spec):
    """How CTC's ids become text: the labels file holds the token of every id, `blank` is no token."""

    blank: TokenId
    delimiter: Literal64 | None = "|"
    space: str = " "
    lower_case: bool = False
    clean_up: bool = False


class TextSpec(Spec):
    """The tokenizer file (`tokenizer.json`) in the bundle, and how its ids become text."""

    tokenizer: BundlePath
    add_special_tokens: bool = False
    clean_up: bool = False
    strip: bool = False


class ChatSpec(Spec):
    """The chat template, the special tokens that it names, and the placeholders of pictures.

    `image_token` is what the template writes for a picture; `image_before` and `image_after` surround the tokens that
    then stand for it.
    """

    template: Annotated[str, Field(min_length=1, max_length=200_000)]
    special_tokens: Annotated[dict[Literal64, str], Field(max_length=64)] = {}
    image_token: Literal64 = "<image>"
    image_before: Annotated[str, Field(max_length=64)] = ""
    image_after: Annotated[str, Field(max_length=64)] = ""
    fake_image_token: Literal64 = "<fake_token_around_image>"
    global_image_token: Literal64 = "<global-img>"
    audio_token: Literal64 | None = None


class MaskSpec(Spec):
    """What a decoder's `attention_bias` inputs hold, for families whose mask is not causal.

    `prefix`: every position of the prompt sees the whole prompt. `image_blocks`: the tokens of one picture see each
    other. `window` is how many positions the layers of `attention_bias.sliding` look back, themselves included;
    `blocks_in_window` says whether it also bounds what the kind lets them see.
    """

    kind: Literal["prefix", "image_blocks"]
    window: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    blocks_in_window: bool = True


class RegionsSpec(Spec):
    """How Florence-2's words become places: `<loc_n>` is the middle of one of `bins` equal steps along an edge.

    Text whose four corners span less than `area_min` of the picture is left out; `banned_phrases` are no objects.
    """

    bins: Annotated[int, Field(ge=1, le=100_000)] = 1000
    area_min: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    banned_phrases: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=1024)] = ()


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


class SamplingSpec(Spec):
    """How the checkpoint draws tokens: what a caller who asks for drawing leaves open is taken from here."""

    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class GenerationSpec(Spec):
    """The manifest's `generation` section: limits, suppressed ids, the prompt of speech models.

    `max_tokens_per_s` bounds the output by the length of the sound (Moonshine), `max_positions` by
    the decoder. The forced prompt of Whisper is `decoder_start`, `languages[code]`, `tasks[name]`,
    `timestamps.no_timestamps`; an English-only checkpoint has no `languages` and no `tasks`.
    `alignment_heads` are the (layer, head) pairs of the decoder's output `alignment` (none: there is no such output),
    which is smoothed over `median_filter_width` positions. `forced_ids` begin every output, `forced_eos` ends one that
    reaches its limit; `no_repeat_ngram_size` n > 0 forbids that n ids in a row are said twice. `max_length` and
    `min_length` count the prompt too; `sampling` is absent where the checkpoint does not sample. The rest are
    transformers' settings of the same names.
    """

    max_new_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    max_length: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    min_length: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    num_beams: Annotated[int, Field(ge=1, le=64)] = 1
    early_stopping: bool | Literal["never"] = False
    length_penalty: Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)] = 1.0
    repetition_penalty: Annotated[float, Field(gt=0.0, le=100.0, allow_inf_nan=False)] = 1.0
    sampling: SamplingSpec | None = None
    max_positions: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    max_tokens_per_s: Positive | None = None
    suppress_tokens: TokenIds = ()
    begin_suppress_tokens: TokenIds = ()
    forced_ids: TokenIds = ()
    forced_eos: TokenId | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=1024)] = 0
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
    median_filter_width: OddWidth = 7

    @model_validator(mode="after")
    def _defaults_exist(self) -> Self:
        for name, table in (("default_task", self.tasks), ("default_language", self.languages)):
            value = getattr(self, name)
            if value is not None and value not in table:
                raise ValueError(f"{name} {value!r} is not one of {sorted(table)}")
        return self

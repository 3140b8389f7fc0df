"""The manifest's sections refuse what is unknown, absurd or unsafe."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from edgemm.bundle import spec

TILES = {"kind": "tiles", "longest_edge": 2048, "max_image_size": 512, "image_seq_len": 64}
CROP = {"kind": "resize_crop", "height_px": 224, "width_px": 224}


@pytest.mark.parametrize(
    ("kind", "data", "made"),
    [
        (spec.ImageSpec, TILES, spec.TilesSpec),
        (spec.ImageSpec, CROP, spec.ResizeCropSpec),
        (spec.AudioSpec, {"kind": "raw"}, spec.RawAudioSpec),
        (spec.AudioSpec, {"kind": "log_mel", "n_mels": 128}, spec.LogMelSpec),
        (spec.TextSpec, {"tokenizer": "text/tokenizer.json"}, spec.TextSpec),
        (spec.ChatSpec, {"template": "{{ x }}"}, spec.ChatSpec),
        (spec.TokensSpec, {"eos": [1, 2]}, spec.TokensSpec),
        (spec.GenerationSpec, {"timestamps": {"begin": 50364}}, spec.GenerationSpec),
    ],
)
def test_survives_json_and_is_frozen(kind, data, made):
    adapter = TypeAdapter(kind)
    value = adapter.validate_python(data)
    assert isinstance(value, made)
    assert adapter.validate_json(adapter.dump_json(value)) == value
    with pytest.raises(ValidationError, match="frozen"):
        setattr(value, next(iter(type(value).model_fields)), None)
    with pytest.raises(ValidationError, match="Extra inputs"):
        adapter.validate_python({**data, "unheard_of": 1})


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (spec.ImageSpec, {**CROP, "kind": "magic"}),
        (spec.ImageSpec, {**CROP, "height_px": 0}),
        (spec.ImageSpec, {**CROP, "width_px": 10**9}),
        (spec.ImageSpec, {**CROP, "std": [1, 0, 1]}),
        (spec.ImageSpec, {**CROP, "mean": [1, 2]}),
        (spec.ImageSpec, {**CROP, "mean": [1, float("nan"), 2]}),
        (spec.ImageSpec, {**CROP, "crop_fraction": 1.5}),
        (spec.ImageSpec, {**CROP, "resample": "cubic"}),
        (spec.ImageSpec, {**TILES, "longest_edge": 16384, "max_image_size": 8}),
        (spec.ImageSpec, {**TILES, "image_seq_len": 0}),
        (spec.AudioSpec, {"kind": "raw", "min_s": 5, "max_s": 1}),
        (spec.AudioSpec, {"kind": "raw", "sample_rate_hz": 0}),
        (spec.AudioSpec, {"kind": "log_mel", "hop": 0}),
        (spec.AudioSpec, {"kind": "log_mel", "hop": 401}),
        (spec.AudioSpec, {"kind": "log_mel", "chunk_s": 1e9}),
        (spec.AudioSpec, {"kind": "log_mel", "chunk_s": 0.01}),
        (spec.AudioSpec, {"kind": "log_mel", "min_hz": 8000}),
        (spec.AudioSpec, {"kind": "log_mel", "floor": 0}),
        *((spec.TextSpec, {"tokenizer": p}) for p in (
            "../t.json", "/etc/passwd", "", ".", "a/../../b", "C:\\t.json", "a\0b", "x" * 300)),
        (spec.ChatSpec, {"template": ""}),
        (spec.ChatSpec, {"template": "x" * 300_000}),
        (spec.TokensSpec, {"bos": -1}),
        (spec.TokensSpec, {"eos": [1 << 30]}),
        (spec.GenerationSpec, {"max_new_tokens": 0}),
        (spec.GenerationSpec, {"suppress_tokens": [-1]}),
        (spec.GenerationSpec, {"default_language": "de", "languages": {"en": 1}}),
        (spec.GenerationSpec, {"temperatures": [-0.1]}),
    ],
)  # fmt: skip
def test_refuses(kind, data):
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(data)

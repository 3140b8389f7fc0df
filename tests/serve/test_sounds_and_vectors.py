"""Transcriptions in every form, and embeddings, by OpenAI's own client."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import openai
import pytest
import soundfile

import edgemm
from edgemm.results import Segment, Transcript, Word
from edgemm.serve.endpoint import Endpoint
from edgemm.serve.transcripts import written
from tests.export.exported import exported

RNG = np.random.default_rng(7)
SOUND = (RNG.normal(0, 0.1, 24_000) * np.hanning(24_000)).astype(np.float32)


@contextmanager
def _served(name: str) -> Iterator[tuple[edgemm.Model, openai.OpenAI]]:
    with (
        edgemm.load(exported(name).bundle, runtime="onnxruntime", exact=True) as model,
        Endpoint(model, port=0) as endpoint,
        openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0) as client,
    ):
        yield model, client


def _wav() -> tuple[str, bytes]:
    file = io.BytesIO()
    soundfile.write(file, SOUND, 16_000, "FLOAT", format="WAV")
    return "sound.wav", file.getvalue()


def test_transcripts_in_every_form() -> None:
    with _served("moonshine") as (model, client):
        expected = model.transcribe(SOUND).text.strip()
        create = client.audio.transcriptions.create
        assert create(model="any", file=_wav()).text == expected
        assert create(model="any", file=_wav(), response_format="text").strip() == expected
        told = create(model="any", file=_wav(), response_format="verbose_json")
        assert told.text == expected
        assert float(told.duration) == 1.5
        assert "".join(s.text for s in told.segments).strip() == expected
        assert create(model="any", file=_wav(), response_format="vtt").startswith("WEBVTT\n\n00:00:00.000 --> ")
        with pytest.raises(openai.BadRequestError, match="the file"):
            create(model="any", file=("a.wav", b"no sound at all"))
        with pytest.raises(openai.BadRequestError, match="'xml' is not known"):
            create(model="any", file=_wav(), response_format="xml")


def test_a_spoken_question_for_a_model_that_hears_only() -> None:
    with _served("moonshine") as (_, client), pytest.raises(openai.NotFoundError, match="answer"):
        client.chat.completions.create(model="any", messages=[{"role": "user", "content": "hello?"}])


def test_vectors_of_texts_and_pictures() -> None:
    with _served("clip") as (model, client):
        texts = ["a red car", "two people in the rain"]
        found = client.embeddings.create(model="any", input=texts)
        for row, text in zip(found.data, texts, strict=True):
            np.testing.assert_allclose(row.embedding, model.embed(text=text).values, rtol=1e-6)
        plain = client.embeddings.create(model="any", input=texts[0], encoding_format="float")
        np.testing.assert_allclose(plain.data[0].embedding, found.data[0].embedding, rtol=1e-6)
        picture = RNG.integers(0, 255, (30, 40, 3), np.uint8)
        _, data = cv2.imencode(".png", picture[..., ::-1])
        url = {"image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}
        seen = client.embeddings.create(model="any", input=[url])
        np.testing.assert_allclose(seen.data[0].embedding, model.embed(picture).values, rtol=1e-6)
        with pytest.raises(openai.BadRequestError, match="input is no text"):
            client.embeddings.create(model="any", input=[[1, 2, 3]])


TRANSCRIPT = Transcript(
    " one. two", (1, 2), 0.9, (Segment(" one.", 0.0, 1.25), Segment(" two", 3661.5, 3662.0)), 5.0,
    (Word(" one.", 0.1, 1.2), Word(" two", 3661.6, 3662.0)),
)  # fmt: skip


def test_subtitles() -> None:
    assert written("srt", TRANSCRIPT, 3662.0, None) == (
        "text/plain",
        "1\n00:00:00,000 --> 00:00:01,250\none.\n\n2\n01:01:01,500 --> 01:01:02,000\ntwo\n",
    )
    assert written("vtt", TRANSCRIPT, 3662.0, None)[1].endswith("01:01:01.500 --> 01:01:02.000\ntwo\n")


def test_words_are_listed() -> None:
    document = json.loads(written("verbose_json", TRANSCRIPT, 3662.0, "en")[1])
    assert document["words"][1] == {"word": "two", "start": 3661.6, "end": 3662.0}
    assert document["language"] == "en"

"""`serve` by OpenAI's own client: what the model says is what the client gets, and wrong requests are named."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import cv2
import numpy as np
import openai
import pytest

import edgemm
from edgemm.errors import SinkError
from edgemm.model import Model
from edgemm.serve.endpoint import BODY_BYTES, Endpoint
from tests.export.exported import exported

RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 255, (40, 50, 3), np.uint8)


def _url(picture: np.ndarray = PICTURE) -> dict:
    ok, data = cv2.imencode(".png", picture[..., ::-1])
    assert ok
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with edgemm.load(exported("smolvlm").bundle, runtime="onnxruntime", exact=True) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def endpoint(model: Model) -> Iterator[Endpoint]:
    with Endpoint(model, port=0) as served:
        yield served


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0) as made:
        yield made


def _ask(client: openai.OpenAI, messages: list, **options):
    return client.chat.completions.create(model="any", messages=messages, max_tokens=12, **options)


def _user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def test_an_answer_is_the_models_own(client: openai.OpenAI, model: Model) -> None:
    said = _ask(client, [_user(_url(), {"type": "text", "text": "what is it?"})])
    expected = model.answer(PICTURE, "what is it?", max_new_tokens=12)
    assert said.choices[0].message.content == expected.text
    assert said.choices[0].finish_reason == ("length" if len(expected.tokens) == 12 else "stop")
    assert said.usage.completion_tokens == len(expected.tokens)
    assert said.usage.prompt_tokens > 10
    assert said.model == model.name


def test_a_stream_has_the_same_words_in_pieces(client: openai.OpenAI) -> None:
    asked = [_user(_url(), {"type": "text", "text": "what is it?"})]
    whole = _ask(client, asked)
    pieces = list(_ask(client, asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text.strip() == whole.choices[0].message.content.strip()
    assert len(pieces) > 5
    assert pieces[-1].usage == whole.usage
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_conversation_goes_on_where_its_state_is(client: openai.OpenAI, model: Model, endpoint: Endpoint) -> None:
    first = _user(_url(), {"type": "text", "text": "what is it?"})
    words = _ask(client, [first]).choices[0].message.content
    again = [first, {"role": "assistant", "content": words}, {"role": "user", "content": "and what colour?"}]
    said = _ask(client, again)
    with model.chat() as talk:
        talk.restore([("what is it?", PICTURE, words)])
        expected = talk.say("and what colour?", max_new_tokens=12)
    assert said.choices[0].message.content == expected.text
    assert endpoint._answering._talk.prefilled < said.usage.prompt_tokens / 2


def test_instructions_and_parts_are_joined(client: openai.OpenAI, model: Model) -> None:
    asked = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "look at this"},
        _user(_url(), {"type": "text", "text": "what is it?"}),
    ]
    said = _ask(client, asked, temperature=0, stop=["\n\n"], seed=3)
    with model.chat(system="be brief") as talk:
        expected = talk.say("look at this\nwhat is it?", PICTURE, max_new_tokens=12, stop=["\n\n"])
    assert said.choices[0].message.content == expected.text


@pytest.mark.parametrize(
    ("messages", "options", "words"),
    [
        ([], {}, "no messages"),
        ([{"role": "assistant", "content": "yes"}], {}, "system first"),
        ([{"role": "user", "content": " "}], {}, "question is empty"),
        ([{"role": "user", "content": [{"type": "file"}]}], {}, "a part of type 'file'"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}],
            {},
            "data URL",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}]}],
            {},
            "the picture",
        ),
        ([{"role": "user", "content": "a"}], {"n": 2}, "n is not supported"),
        ([{"role": "user", "content": "a"}], {"temperature": -1}, "temperature -1"),
        ([{"role": "user", "content": "a"}], {"response_format": {"type": "json_object"}}, "json_object"),
    ],
)
def test_wrong_requests_are_named(client: openai.OpenAI, messages, options, words) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=words):
            _ask(client, messages, stream=stream, **options)


def test_what_a_model_cannot_do_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="transcribe"):
        client.audio.transcriptions.create(model="any", file=("a.wav", b"RIFF"))
    with pytest.raises(openai.NotFoundError, match="embed"):
        client.embeddings.create(model="any", input="a")
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


def test_the_model_is_listed(client: openai.OpenAI, model: Model) -> None:
    assert [m.id for m in client.models.list()] == [model.name]
    assert client.models.retrieve(model.name).owned_by == "edgemm"


def test_a_client_that_leaves_ends_its_answer(client: openai.OpenAI, endpoint: Endpoint) -> None:
    asked = [{"role": "user", "content": "tell me everything"}]
    stream = client.chat.completions.create(model="any", messages=asked, max_tokens=400, stream=True)
    next(iter(stream))
    stream.close()
    began_s = time.monotonic()
    _ask(client, asked)
    assert time.monotonic() - began_s < 5
    assert endpoint._busy == 0


def _raw(endpoint: Endpoint, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, dict]:
    with closing(http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=10)) as connection:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_pages_of_other_sites_are_refused(endpoint: Endpoint) -> None:
    assert _raw(endpoint, "GET", "/v1/models", {"Origin": "https://evil.example"})[0] == 403
    assert _raw(endpoint, "GET", "/v1/models", {"Host": "evil.example"})[0] == 403
    assert _raw(endpoint, "GET", "/v1/models", {"Origin": "http://localhost:3000"})[0] == 200
    status, said = _raw(endpoint, "GET", "/v1/../etc/passwd", {})
    assert status == 404
    assert said["error"]["type"] == "invalid_request_error"


def test_a_request_that_is_too_large_is_refused(endpoint: Endpoint) -> None:
    status, said = _raw(endpoint, "POST", "/v1/chat/completions", {}, b"x" * (BODY_BYTES + 1))
    assert status == 413
    assert "32 MiB" in said["error"]["message"]
    assert _raw(endpoint, "POST", "/v1/chat/completions", {}, b"{")[0] == 400


def test_a_token_is_asked_for(model: Model) -> None:
    with Endpoint(model, port=0, token="secret") as endpoint:
        wrong = openai.OpenAI(base_url=endpoint.url, api_key="guess", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="token"):
            wrong.models.list()
        right = openai.OpenAI(base_url=endpoint.url, api_key="secret", max_retries=0)
        assert len(right.models.list().data) == 1
        wrong.close()
        right.close()


def test_a_taken_port_is_said(endpoint: Endpoint, model: Model) -> None:
    with pytest.raises(SinkError, match="in use"):
        Endpoint(model, port=endpoint.port)


def test_it_ends_while_it_answers(model: Model) -> None:
    before = set(threading.enumerate())
    endpoint = Endpoint(model, port=0)
    body = json.dumps({"messages": [{"role": "user", "content": "go on"}], "max_tokens": 400, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", endpoint.port)) as raw:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall(head.encode() + body)
        raw.recv(100)
        began_s = time.monotonic()
        endpoint.close()
        assert time.monotonic() - began_s < 2
    assert set(threading.enumerate()) <= before

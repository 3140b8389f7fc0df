"""Broken requests to the endpoint: none makes it fail, stop or keep something."""

from __future__ import annotations

import http.client
import json
from contextlib import closing

import pytest

import edgemm
from edgemm.serve.endpoint import WAITING, Endpoint
from tests.export.exported import exported
from tests.fuzzing import Fuzz, Leaks, post, storm

PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)
ASKED = [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "what is it?"}]
CHAT = {
    "model": "any",
    "max_tokens": 1,
    "temperature": 0,
    "stop": ["x"],
    "stream": False,
    "messages": [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "what is it?"}],
        },
    ],
}
EMBED = {"model": "any", "input": ["a cup", "two"], "encoding_format": "base64"}


@pytest.mark.parametrize("for_s", [6.0, pytest.param(600.0, marks=pytest.mark.slow)])
def test_nothing_fails_and_nothing_leaks(for_s: float, caplog: pytest.LogCaptureFixture) -> None:
    with edgemm.load(exported("smolvlm").bundle, runtime="onnxruntime") as model, Endpoint(model, port=0) as endpoint:
        host = f"127.0.0.1:{endpoint.port}"
        documents = [("/v1/chat/completions", CHAT), ("/v1/embeddings", EMBED)]
        documents.append(("/v1/chat/completions", CHAT | {"stream": True}))
        seeds = [post(path, body, host) for path, body in documents]
        seeds += [f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() for path in ("/v1/models", "/v1/models/x")]
        address = ("127.0.0.1", endpoint.port)
        storm(address, Fuzz(host, seeds, documents, seed=0), 1.0)  # everything is loaded
        leaks = Leaks()
        statuses, failed = storm(address, Fuzz(host, seeds, documents, seed=1), for_s)
        assert failed == []
        assert {200, 400} <= set(statuses)
        assert not set(statuses) - {0, 100, 200, 400, 401, 403, 404, 405, 411, 413, 417, 429}
        leaks.assert_none(threads=WAITING, mib=64)
        with closing(http.client.HTTPConnection(*address)) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(CHAT))
            said = json.loads(connection.getresponse().read())
        assert said["choices"][0]["finish_reason"] in ("stop", "length")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []

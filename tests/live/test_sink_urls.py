"""`--sink` and what it says of URLs that are none."""

from __future__ import annotations

import sys

import pytest

from edgemm.errors import RuntimeUnavailable, UsageError
from edgemm.live.sinks.address import parse
from edgemm.live.sinks.registry import KINDS, as_sinks

EXAMPLES = [kind.accepts for kind in KINDS]
PACKAGES = {
    "websockets": "ws://:1",
    "paho": "mqtt://h",
    "prometheus_client": "prometheus://:1",
    "zenoh": "zenoh://p",
    "rerun": "rerun://",
}


def test_every_kind_is_made_of_its_example_and_opens_nothing():
    for module in PACKAGES:
        pytest.importorskip(module, reason="the extra sinks is not installed")
    assert [sink.name for sink in as_sinks(EXAMPLES)] == EXAMPLES


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("127.0.0.1:8765", "no sink"),
        ("http://127.0.0.1", "no sink"),
        ("ws://127.0.0.1:99999", "no URL"),
        ("ws://127.0.0.1:port", "no URL"),
        ("ws://127.0.0.1?tokn=x", "unknown option"),
        ("kafka://robot:s3same@host", "no sink"),
        ("mqtt://robot:s3same@host:99999", "no URL"),
    ],
)
def test_wrong_urls(url, word):
    pytest.importorskip("websockets", reason="the extra sinks is not installed")
    pytest.importorskip("paho", reason="the extra sinks is not installed")
    with pytest.raises(UsageError, match=word) as error:
        as_sinks([url])
    assert error.value.hint
    assert "s3same" not in str(error.value)


def test_twice_is_once_too_often():
    pytest.importorskip("websockets", reason="the extra sinks is not installed")
    with pytest.raises(UsageError, match="twice"):
        as_sinks(["ws://127.0.0.1:8765", "ws://127.0.0.1:8765?token=x"])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_extra_is_named(monkeypatch, package):
    for name in list(sys.modules):
        if name.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeUnavailable) as error:
        as_sinks([PACKAGES[package]])
    extra = "rerun" if package == "rerun" else "sinks"
    assert error.value.hint == f'run: pip install "edgemm[{extra}]"'


def test_the_parts_of_a_url():
    url = parse("mqtt://robot:s%40me@[::1]/a/b", port=1883)
    assert (url.host, url.port, url.path, url.user, url.password) == ("::1", 1883, "a/b", "robot", "s@me")
    assert url.shown == "mqtt://[::1]:1883/a/b"
    assert url.loopback
    assert not parse("ws://0.0.0.0", port=1).loopback
    assert not parse("ws://robot.local", port=1).loopback
    assert parse("ws://:5", port=1).loopback
    assert "s@me" not in repr(url)

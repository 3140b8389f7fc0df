"""The kinds of sinks that have a URL. This table is the only list of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgemm.errors import UsageError
from edgemm.live.sinks.base import Sink
from edgemm.live.sinks.metrics import PrometheusSink
from edgemm.live.sinks.mqtt import MqttSink
from edgemm.live.sinks.rerun_viewer import RerunSink
from edgemm.live.sinks.speak import SpeakSink
from edgemm.live.sinks.websocket import WebSocketSink
from edgemm.live.sinks.zenoh_bus import ZenohSink
from edgemm.live.sources.base import redact


@dataclass(frozen=True)
class SinkKind:
    """One kind of `--sink`: its schemes, an example, and what makes it of a URL."""

    schemes: tuple[str, ...]
    accepts: str
    make: Callable[[str], Sink]


KINDS: tuple[SinkKind, ...] = (
    SinkKind(("ws",), "ws://127.0.0.1:8765", WebSocketSink),
    SinkKind(("mqtt", "mqtts"), "mqtt://host:1883/prefix", MqttSink),
    SinkKind(("prometheus",), "prometheus://127.0.0.1:9464", PrometheusSink),
    SinkKind(("zenoh",), "zenoh://prefix", ZenohSink),
    SinkKind(("rerun",), "rerun://", RerunSink),
    SinkKind(("speak",), "speak://", SpeakSink),
)


def as_sinks(sinks: Sequence[Sink | str]) -> list[Sink]:
    """Sinks as they are, and URLs as the sinks that they name; nothing is opened yet. Raises
    UsageError for a URL that is none or stands twice, RuntimeUnavailable where the extra is missing."""
    made = [_of_url(sink) if isinstance(sink, str) else sink for sink in sinks]
    names = [sink.name for sink in made]
    for sink, given in zip(made, sinks, strict=True):
        if isinstance(given, str) and names.count(sink.name) > 1:
            raise UsageError(f"{sink.name} is given twice", hint="give it once")
    return made


def _of_url(url: str) -> Sink:
    scheme = url.partition("://")[0].lower()
    for kind in KINDS:
        if "://" in url and scheme in kind.schemes:
            return kind.make(url)
    raise UsageError(
        f"{redact(url)!r} is no sink that edgemm knows",
        hint="there are: " + ", ".join(kind.accepts for kind in KINDS),
    )

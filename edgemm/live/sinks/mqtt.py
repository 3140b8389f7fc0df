"""Events to an MQTT broker (3.1.1): `prefix/<type>`, JSON, QoS 1."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from edgemm.errors import SinkError, UsageError
from edgemm.live.events import Event, StatusEvent, to_json
from edgemm.live.sinks.address import need, parse
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits
from edgemm.live.sources.base import redact

RETAINED = frozenset({"started", "status", "stats"})

_IN_FLIGHT = 20
_KEEPALIVE_S = 5
_CONNECT_S = 3.0
_BACK_OFF_S = (0.25, 4.0)
_LAST_S = 2.0
_PORTS = {"mqtt": 1883, "mqtts": 8883}


class MqttSink:
    """Publishes to `mqtt://user:password@host:port/prefix`, or `mqtts://` with TLS.

    At least once, in order; `started`, `status` and `stats` are retained. A broker that cannot be
    reached, refuses or goes away is reported once and tried for ever, after 0.25 s to 4 s. Meanwhile
    at most 4096 events wait: of `stats` the newest alone, of the others the oldest are dropped and
    counted. What waits when the run ends is
    sent as long as the broker takes something every 2 s. The last will, on `prefix/status`, is a `status` of no
    source with the state `lost` and the id -1.
    """

    essential = False
    limits = SinkLimits(events=4096, latest=frozenset({"stats"}))

    def __init__(self, url: str) -> None:
        self._paho = need("paho.mqtt.client", "paho-mqtt")
        scheme = url.partition("://")[0].lower()
        self._url = parse(url, port=_PORTS.get(scheme, 1883))
        self.name = self._url.shown
        self._prefix = self._url.path or "edgemm"
        if any(character in self._prefix for character in "+#\0"):
            raise UsageError(f"{self.name}: a prefix has neither + nor #", hint="write mqtt://host:1883/robot/eyes")
        self._changed = threading.Condition()
        self._connected, self._closing = False, False
        self._unacknowledged = 0
        self._said = ""
        self._last_s: float | None = None
        self._client: Any = None

    def open(self, context: SinkContext) -> None:
        """Begins to connect and returns at once."""
        self._context = context
        context.patient(False)
        client = self._client = self._paho.Client(self._paho.CallbackAPIVersion.VERSION2)
        if self._url.user is not None:
            client.username_pw_set(self._url.user, self._url.password)
        if self._url.scheme == "mqtts":
            client.tls_set()
        gone = StatusEvent(state="lost", reason="edgemm is gone without a word")
        client.will_set(f"{self._prefix}/status", json.dumps(to_json(gone)), qos=1, retain=True)
        client.on_connect, client.on_connect_fail = self._on_connect, self._on_connect_fail
        client.on_disconnect, client.on_publish = self._on_disconnect, self._on_publish
        client.connect_timeout = _CONNECT_S
        client.max_inflight_messages_set(_IN_FLIGHT)
        client.reconnect_delay_set(*_BACK_OFF_S)
        client.connect_async(self._url.host, self._url.port, keepalive=_KEEPALIVE_S)
        client.loop_start()

    def handle(self, item: Item) -> None:
        """Publishes an event as soon as the broker is there and has taken what was sent before."""
        if not isinstance(item, Event) or not self._wait_for(lambda: self._room):
            return
        with self._changed:
            self._unacknowledged += 1
        text = json.dumps(to_json(item), ensure_ascii=False)
        self._client.publish(f"{self._prefix}/{item.type}", text, qos=1, retain=item.type in RETAINED)

    def close(self) -> None:
        """Waits for the broker to take what was sent, then takes leave of it."""
        if self._client is None:
            return
        self._wait_for(lambda: not self._unacknowledged)
        self._closing = True
        self._client.disconnect()
        self._client.loop_stop()
        self._client = None  # with it go its sockets

    @property
    def _room(self) -> bool:
        return self._connected and self._unacknowledged < _IN_FLIGHT

    def _wait_for(self, ready: Callable[[], bool]) -> bool:
        """Whether it came true; from the end of the run on, 2 s without progress are enough."""
        with self._changed:
            while not ready():
                if self._context.closing():
                    self._last_s = self._last_s or time.monotonic() + _LAST_S
                    if time.monotonic() > self._last_s:
                        return False
                self._changed.wait(0.05)
        return True

    # What follows is called in the client's own thread.

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._away(f"{self.name} refuses the connection: {reason}", "check the user and the password in the URL")
            return
        self._said = ""
        self._context.patient(True)
        with self._changed:
            self._connected = True
            self._changed.notify_all()

    def _on_connect_fail(self, client: Any, data: Any) -> None:
        error = sys.exc_info()[1]
        why = getattr(error, "strerror", None) or str(error or "no answer")
        self._away(f"{self.name} cannot be reached: {redact(why)}", "start a broker there; it is tried again and again")

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._connected and not self._closing:
            self._away(f"{self.name} is lost: {reason}", "it is tried again and again")
        with self._changed:
            self._connected = False
            self._changed.notify_all()

    def _on_publish(self, client: Any, data: Any, number: int, reason: Any, properties: Any) -> None:
        with self._changed:
            self._unacknowledged -= 1
            self._last_s = None
            self._changed.notify_all()

    def _away(self, message: str, hint: str) -> None:
        """The broker is not there: said once until it is there again."""
        self._context.patient(False)
        if not self._said:
            self._context.report(SinkError(message, hint=hint))
        self._said = message

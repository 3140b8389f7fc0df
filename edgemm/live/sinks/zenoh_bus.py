"""Events on a Zenoh bus: `prefix/<type>`, JSON."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from edgemm.errors import SinkError, UsageError
from edgemm.live.events import Event, to_json
from edgemm.live.sinks.address import need, parse
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits
from edgemm.live.sources.base import redact

KEPT = frozenset({"started", "status", "stats", "summary"})


class ZenohSink:
    """Publishes under `zenoh://prefix`; `get prefix/*` gives the last `started`, `status`, `stats`.

    A peer that finds others by multicast, as Zenoh does by default: it can then be reached from other
    machines. `?listen=tcp/127.0.0.1:7447`, `?connect=tcp/host:7447`, `?mode=client` and
    `?scouting=false` change that. Delivery is reliable; Zenoh itself cuts off a peer that does not read.
    """

    limits = SinkLimits(events=4096)

    def __init__(self, url: str) -> None:
        self._zenoh = need("zenoh", "eclipse-zenoh")
        self._url = parse(url, port=0, host="", options=("mode", "listen", "connect", "scouting"))
        # A key keeps its capitals; a host's name would not.
        self._prefix = (urlsplit(url).netloc + "/" + self._url.path).strip("/") or "edgemm"
        self.name = f"zenoh://{self._prefix}"
        self.essential = True  # until it is open
        if any(character in self._prefix for character in "*$#?@"):
            raise UsageError(f"{redact(url)}: a prefix has none of * $ # ? @", hint="write zenoh://robot/eyes")
        self._last: dict[str, str] = {}
        self._session: Any = None

    def open(self, context: SinkContext) -> None:
        """Joins the bus. Raises SinkError."""
        try:
            self._session = self._zenoh.open(self._config())
            self._session.declare_queryable(f"{self._prefix}/*", self._asked)
        except self._zenoh.ZError as error:
            raise SinkError(
                f"{self.name} cannot be opened: {redact(str(error).splitlines()[0])}",
                hint="check listen and connect: tcp/host:port",
            ) from error
        self.essential = False

    def handle(self, item: Item) -> None:
        """Publishes an event."""
        if not isinstance(item, Event):
            return
        text = json.dumps(to_json(item), ensure_ascii=False)
        if item.type in KEPT:
            self._last[item.type] = text
        self._session.put(
            f"{self._prefix}/{item.type}", text,
            encoding=self._zenoh.Encoding.APPLICATION_JSON,
            congestion_control=self._zenoh.CongestionControl.BLOCK,
        )  # fmt: skip

    def close(self) -> None:
        """Leaves the bus."""
        if self._session is not None:
            self._session.close()

    def _asked(self, query: Any) -> None:
        for event_type, text in list(self._last.items()):
            key = self._zenoh.KeyExpr(f"{self._prefix}/{event_type}")
            if query.key_expr.intersects(key):
                query.reply(key, text, encoding=self._zenoh.Encoding.APPLICATION_JSON)

    def _config(self) -> Any:
        config, options = self._zenoh.Config(), self._url.options
        config.insert_json5("mode", json.dumps(options.get("mode", "peer")))
        for side in ("listen", "connect"):
            if side in options:
                config.insert_json5(f"{side}/endpoints", json.dumps(options[side].split(",")))
        if options.get("scouting", "true") in ("false", "0", "no"):
            config.insert_json5("scouting/multicast/enabled", "false")
        return config

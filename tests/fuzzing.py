"""Requests that no honest client sends: valid ones, broken at random, and what a server makes of them."""

from __future__ import annotations

import gc
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import psutil

WEIRD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1e308, float("nan"), "", "\0", "a" * 70_000, [], {}, [[[[[]]]]], {"a": {"b": []}}, "🤖",
    "data:image/png;base64,", "data:,", "file:///etc/passwd", "http://127.0.0.1:1/x.png",
)  # fmt: skip
WEIRD_BYTES = (
    b"\0", b"\r\n", b"\r\n\r\n", b"%2e%2e/", b"../", b"[", b"]", b":", b"@", b"\xff\xfe", b"A" * 20_000, b"-1",
    b"99999999999999999999", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Expect: 100-continue\r\n",
)  # fmt: skip
_ANSWER_BYTES = 1 << 16
_PATIENCE_S = 0.5  # a server that waits for the rest of a request says nothing
_STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})")


def post(path: str, body: Any, host: str) -> bytes:
    """A POST of JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(content), content)


class Fuzz:
    """Endless requests made of `seeds` (bytes as they are sent) and `documents` (path and JSON); the same of a seed."""

    def __init__(self, host: str, seeds: Sequence[bytes], documents: Sequence[tuple[str, Any]], seed: int) -> None:
        self._host, self._seeds, self._documents = host, seeds, documents
        self._rng = random.Random(seed)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            if self._documents and self._rng.random() < 0.5:
                path, document = self._rng.choice(self._documents)
                yield post(path, self._bent(json.loads(json.dumps(document))), self._host)
            else:
                yield self._broken(self._rng.choice(self._seeds))

    def _bent(self, document: Any) -> Any:
        """One value somewhere in it is another, or gone."""
        places = list(_places(document))
        if not places or self._rng.random() < 0.05:
            return self._rng.choice(WEIRD_VALUES)
        owner, key = self._rng.choice(places)
        if self._rng.random() < 0.2:
            del owner[key]
        else:
            owner[key] = self._rng.choice(WEIRD_VALUES)
        return document

    def _broken(self, data: bytes) -> bytes:
        rng = self._rng
        for _ in range(rng.randint(1, 4)):
            at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
            data = rng.choice((
                data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at:],
                data[:at] + data[end:],
                data[:at] + data[at:end] * 3 + data[end:],
                data[:at] + rng.choice(WEIRD_BYTES) + data[at:],
                data[:at] + rng.choice(self._seeds)[at:],
            ))  # fmt: skip
        return data


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from _places(document[key])


def storm(
    address: tuple[str, int], requests: Fuzz, for_s: float, *, at_once: int = 8
) -> tuple[Counter[int], list[bytes]]:
    """Sends requests for so long. Returns how often each status came (0: none), and the requests that had a 500."""
    statuses: Counter[int] = Counter()
    failed: list[bytes] = []
    lock, source, end_s = threading.Lock(), iter(requests), time.monotonic() + for_s

    def send() -> None:
        while time.monotonic() < end_s:
            with lock:
                data = next(source)
            status = _status(address, data)
            with lock:
                statuses[status] += 1
                failed.extend([data] if status == 500 else [])

    threads = [threading.Thread(target=send) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, failed


def _status(address: tuple[str, int], data: bytes) -> int:
    with suppress(OSError), socket.create_connection(address, 1.0) as connection:
        connection.settimeout(_PATIENCE_S)
        connection.sendall(data)
        found = _STATUS.match(connection.recv(_ANSWER_BYTES))
        return int(found[1]) if found else 0
    return 0


class Leaks:
    """Open files, threads and memory of this process, before and after."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._count()

    def _count(self) -> tuple[int, int, float]:
        gc.collect()
        return self._process.num_fds(), self._process.num_threads(), self._process.memory_info().rss / 2**20

    def assert_none(self, *, threads: int = 0, mib: float) -> None:
        """Within 5 s there are no more open files than before, at most `threads` threads and `mib` MiB more."""
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s:
            now = self._count()
            if now[0] <= self._before[0] and now[1] <= self._before[1] + threads:
                break
            time.sleep(0.1)
        assert now[0] <= self._before[0], "open files"
        assert now[1] <= self._before[1] + threads, "threads"
        assert now[2] <= self._before[2] + mib, "MiB"

"""A GPU that is none: its memory is numpy's, its streams are threads.

It holds that every address is inside memory that was allocated, by a thread that has chosen its device; that memory is
never zero by chance; and that work is queued and done later, and read only when it is done.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from edgemm.runtimes.cuda import DeviceError


class PretendDevice:
    """See `edgemm.runtimes.cuda.Device`. `most` bytes is all that it has."""

    name, sm, driver = "Pretend GPU", "sm89", 13000

    def __init__(self, index: int = 0, most: int = 1 << 40) -> None:
        self.index, self.most = index, most
        self.blocks: dict[int, Any] = {}
        self.launches = 0
        self._streams: dict[int, _Stream] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._thread = threading.local()

    def use(self) -> None:
        self._thread.chosen = True

    def _check(self) -> None:
        assert getattr(self._thread, "chosen", False), "this thread has not chosen its device"

    def allocate(self, size: int) -> int:
        self._check()
        if sum(b.nbytes for b in self.blocks.values()) + size > self.most:
            raise DeviceError("cuMemAlloc_v2 failed: CUDA_ERROR_OUT_OF_MEMORY")
        block = np.full(size, 0xA5, np.uint8)
        self.blocks[block.ctypes.data] = block
        return int(block.ctypes.data)

    def free(self, address: int) -> None:
        del self.blocks[address]

    def inside(self, address: int, size: int) -> None:
        """Fail unless these bytes were allocated."""
        assert any(a <= address and address + size <= a + b.nbytes for a, b in self.blocks.items()), "stray address"

    def stream(self) -> int:
        self._check()
        number = len(self._streams) + 1
        self._streams[number] = _Stream()
        return number

    def drop_stream(self, stream: int) -> None:
        self._streams.pop(stream).close()

    def queue(self, stream: int, work: Callable[[], None]) -> None:
        """Do it later, in order."""
        self._check()
        self._streams[stream].add(work)

    def upload(self, address: int, array: Any, stream: int) -> None:
        self.inside(address, array.nbytes)
        source, size = array.ctypes.data, array.nbytes
        self.queue(stream, lambda: move(address, source, size))

    def download(self, array: Any, address: int, stream: int) -> None:
        self.inside(address, array.nbytes)
        target, size = array.ctypes.data, array.nbytes
        self.queue(stream, lambda: move(target, address, size))

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        self.inside(target, size)
        self.inside(source, size)
        self.queue(stream, lambda: move(target, source, size))

    def done(self, stream: int) -> bool:
        return self._streams[stream].done()

    def wait(self, stream: int) -> None:
        self._check()
        self._streams[stream].wait()

    def begin_capture(self, stream: int) -> None:
        self._streams[stream].recorded = []

    def end_capture(self, stream: int) -> int:
        recorded, self._streams[stream].recorded = self._streams[stream].recorded, None
        assert recorded is not None
        number = len(self._graphs) + 1
        self._graphs[number] = recorded
        return number

    def launch(self, graph: int, stream: int) -> None:
        self.launches += 1
        for work in self._graphs[graph]:
            self.queue(stream, work)

    def drop_graph(self, graph: int) -> None:
        self._graphs[graph] = []


def move(target: int, source: int, size: int) -> None:
    ctypes.memmove(target, source, size)


class _Stream:
    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1)
        self._waiting: list[Future[None]] = []
        self.recorded: list[Callable[[], None]] | None = None

    def add(self, work: Callable[[], None]) -> None:
        if self.recorded is not None:
            self.recorded.append(work)
        else:
            self._waiting.append(self._worker.submit(work))

    def done(self) -> bool:
        return all(f.done() for f in self._waiting) and (self.wait() or True)

    def wait(self) -> None:
        waiting, self._waiting = self._waiting, []
        failures = [e for e in [f.exception() for f in waiting] if e is not None]
        if failures:
            raise DeviceError(str(failures[0]).splitlines()[0][:200]) from failures[0]

    def close(self) -> None:
        self._worker.shutdown(wait=False)

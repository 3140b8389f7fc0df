"""Tensors in a GPU's memory: buffers that are used again, and the copies that a decoder's state takes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from edgemm.runtimes.base import Array
from edgemm.runtimes.cuda import Device, DeviceError

_LEAST_BYTES = 256  # an empty tensor has an address too


class Pool:
    """Buffers of one device. A tensor that nobody holds any more gives its buffer back.

    Sizes are powers of two, so that a state that grows with every token stays in two buffers for long.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.taken_bytes = 0
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._closed = False

    def take(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes. Raises DeviceError where memory is short."""
        whole = max(_LEAST_BYTES, 1 << max(0, size - 1).bit_length())
        spare = self._free[whole]
        try:
            address = spare.pop()
        except IndexError:
            address = self._allocate(whole)
            self.taken_bytes += whole
        return Buffer(self, address, whole)

    def _allocate(self, size: int) -> int:
        try:
            return self.device.allocate(size)
        except DeviceError:
            self._free_spare()
            return self.device.allocate(size)

    def give_back(self, address: int, size: int) -> None:
        """Only `Buffer` calls this."""
        self._free[size].append(address)
        if self._closed:
            self._free_spare()

    def close(self) -> None:
        """Free what nobody holds, now and from now on."""
        self._closed = True
        self._free_spare()

    def _free_spare(self) -> None:
        for size, spare in self._free.items():
            while spare:
                # The driver may be gone before the last tensor is.
                with suppress(DeviceError):
                    self.device.free(spare.pop())
                self.taken_bytes -= size


class Buffer:
    """Memory of a device, given back when it is forgotten."""

    def __init__(self, pool: Pool, address: int, size: int) -> None:
        self.address, self.size = address, size
        self._pool = pool

    def __del__(self) -> None:
        self._pool.give_back(self.address, self.size)


class DeviceTensor:
    """See `edgemm.runtimes.base.DeviceValue`. Its numbers never change once the call that made it is over."""

    def __init__(self, buffer: Buffer, shape: Sequence[int], dtype: np.dtype[Any], queue: Queue) -> None:
        self.buffer, self.shape, self.dtype = buffer, tuple(shape), dtype
        self._queue = queue

    @property
    def address(self) -> int:
        return self.buffer.address

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self) -> Array:
        array = np.empty(self.shape, self.dtype)
        self._queue.device.use()
        if array.size:
            self._queue.device.download(array, self.address, self._queue.stream)
            self._queue.device.wait(self._queue.stream)
        return array


class Queue:
    """A device's stream and memory: makes tensors, and copies of parts of them."""

    def __init__(self, device: Device) -> None:
        self._dropped = True
        device.use()
        self.device = device
        self.pool = Pool(device)
        self.stream = device.stream()
        self._dropped = False

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> DeviceTensor:
        """A tensor of arbitrary numbers."""
        return DeviceTensor(self.pool.take(math.prod(shape) * dtype.itemsize), shape, dtype, self)

    def tensor(self, array: Array) -> DeviceTensor:
        """A copy of a contiguous array."""
        self.device.use()
        made = self.empty(array.shape, array.dtype)
        if array.size:
            self.device.upload(made.address, array, self.stream)
            self.device.wait(self.stream)
        return made

    def head(self, tensor: DeviceTensor, length: int, axis: int) -> DeviceTensor:
        """The first `length` of `axis`."""
        shape = (*tensor.shape[:axis], length, *tensor.shape[axis + 1 :])
        inner = math.prod(tensor.shape[axis + 1 :]) * tensor.dtype.itemsize
        row, wide = length * inner, tensor.shape[axis] * inner
        return self._rows(tensor, shape, row, [i * wide for i in range(math.prod(shape[:axis]))])

    def longer(self, tensor: DeviceTensor, length: int, axis: int) -> DeviceTensor:
        """`tensor` with zeros behind it, up to `length` along `axis`."""
        made = self.tensor(np.zeros((*tensor.shape[:axis], length, *tensor.shape[axis + 1 :]), tensor.dtype))
        inner = math.prod(tensor.shape[axis + 1 :]) * tensor.dtype.itemsize
        row, wide = tensor.shape[axis] * inner, length * inner
        for i in range(math.prod(tensor.shape[:axis]) if row else 0):
            self.device.copy(made.address + i * wide, tensor.address + i * row, row, self.stream)
        self.device.wait(self.stream)
        return made

    def take(self, tensor: DeviceTensor, rows: Sequence[int]) -> DeviceTensor:
        """Rows of the first axis."""
        row = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
        return self._rows(tensor, (len(rows), *tensor.shape[1:]), row, [int(i) * row for i in rows])

    def _rows(self, tensor: DeviceTensor, shape: Sequence[int], size: int, offsets: Sequence[int]) -> DeviceTensor:
        made = self.empty(shape, tensor.dtype)
        if size:
            self.device.use()
            for i, offset in enumerate(offsets):
                self.device.copy(made.address + i * size, tensor.address + offset, size, self.stream)
            self.device.wait(self.stream)
        return made

    def close(self) -> None:
        """Wait for what is under way, then free the memory that nobody holds. Tensors that somebody holds live on."""
        if not self._dropped:
            with suppress(DeviceError):
                self.device.use()
                self.device.wait(self.stream)
        self.pool.close()

    def __del__(self) -> None:
        if self._dropped:
            return
        # Garbage is collected in any order: `close` may come after.
        self.close()
        self._dropped = True
        with suppress(DeviceError):
            self.device.drop_stream(self.stream)

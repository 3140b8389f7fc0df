"""A place for one item between two threads: the newest wins, or the writer waits."""

from __future__ import annotations

import threading
import time
from typing import Generic, TypeVar

T = TypeVar("T")


class Slot(Generic[T]):
    """Capacity one. `put` replaces what was not taken; `put_when_empty` waits until it was."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: T | None = None
        self._closed = False

    def put(self, item: T) -> T | None:
        """Stores the item at once and returns what nobody took: the older item, if there was
        one, or the item itself where the slot is closed."""
        with self._changed:
            if self._closed:
                return item
            old, self._item = self._item, item
            self._changed.notify_all()
            return old

    def put_when_empty(self, item: T) -> T | None:
        """Waits until the slot is empty, stores, and returns None; the item if closed before."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is None or self._closed)
            if self._closed:
                return item
            self._item = item
            self._changed.notify_all()
            return None

    def take(self, timeout_s: float) -> T | None:
        """The item, or None after `timeout_s` or as soon as the slot is closed and empty."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._item is None and not self._closed:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                self._changed.wait(left_s)
            item, self._item = self._item, None
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """No further item will come; the one inside can still be taken. Wakes all waiters."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def clear(self) -> T | None:
        """Takes out what is inside without waiting."""
        with self._changed:
            item, self._item = self._item, None
            self._changed.notify_all()
            return item

    @property
    def spent(self) -> bool:
        """Closed and empty."""
        with self._changed:
            return self._closed and self._item is None

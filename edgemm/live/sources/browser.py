"""`browser://`: the camera and the microphone of whoever looks at the live page.

The page puts what it sends into an inbox, the pipeline's reader takes it from there. Each inbox has one reader, the
one that was opened last, and one sender, the page that came last: a process can have one run on a browser.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import SourceError
from edgemm.live.sources.base import Picture, Sound, TransientSourceError, Wish

SPEC = "browser://"
SERVED_S = 5.0
PICTURE_BYTES = 4_000_000
PICTURE_PX = 4096
PIECES = 500

T = TypeVar("T")


class Inbox(Generic[T]):
    """At most `capacity` items from a page to a reader; the oldest is lost where there is no room."""

    def __init__(self, capacity: int) -> None:
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._reader = self._sender = 0
        self._present = False
        self._served = False
        self._on_taken: Callable[[], None] = lambda: None
        self.wish = Wish()
        self.lost = False

    def serve(self, served: bool) -> None:
        """Whether there is a live page that can put something here."""
        with self._changed:
            self._served = served
            self._items.clear()
            self._changed.notify_all()

    def connect(self, on_taken: Callable[[], None]) -> int:
        """A page that will send: its number, with which it puts. `on_taken` is called in the reader's thread for each
        item that was taken."""
        with self._changed:
            self._sender += 1
            self._present, self._on_taken = True, on_taken
            self._items.clear()
            return self._sender

    def put(self, sender: int, item: T) -> bool:
        """False where another page has taken over. Never waits."""
        with self._changed:
            if sender != self._sender:
                return False
            if len(self._items) >= self._capacity:
                self._items.popleft()
                self.lost = True
            self._items.append(item)
            self._changed.notify_all()
            return True

    def disconnect(self, sender: int) -> None:
        """The page has gone."""
        with self._changed:
            if sender == self._sender:
                self._present = False
                self._changed.notify_all()

    def subscribe(self, wish: Wish) -> int:
        """The number of a new reader; the one before it gets nothing more. Raises SourceError without a live page."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._served, SERVED_S):
                raise SourceError(f"{SPEC} needs the live page", hint="add --web 127.0.0.1:8080 to edgemm run")
            self._reader += 1
            self.wish = wish
            self._changed.notify_all()
            return self._reader

    def take(self, reader: int, *, began: bool) -> T:
        """The next item. With `began` it raises TransientSourceError when the page has gone; else it waits for one, as
        long as it takes."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or reader != self._reader or (began and not self._present))
            if reader != self._reader:
                raise TransientSourceError(f"{SPEC} is read by another")
            if not self._items:
                raise TransientSourceError("the page that sent it was closed")
            item, on_taken = self._items.popleft(), self._on_taken
        on_taken()
        return item

    def leave(self, reader: int) -> None:
        """The reader wants nothing more; one that waits is let go."""
        with self._changed:
            if reader == self._reader:
                self._reader += 1
                self._changed.notify_all()


# Pictures are decoded, or converted, by whoever takes them: uint8 [H, W, 3] RGB, None for what is no picture.
CAMERA: Inbox[Callable[[], NDArray[np.uint8] | None]] = Inbox(1)
MICROPHONE: Inbox[Sound] = Inbox(PIECES)


class BrowserVideo:
    """The newest picture that a page has sent."""

    def __init__(self, spec: str, wish: Wish) -> None:
        _check(spec)
        self._wish, self._reader, self._began = wish, 0, False
        self.decode_errors = 0

    def open(self) -> None:
        """Raises SourceError where no live page is served."""
        self._reader = CAMERA.subscribe(self._wish)

    def read(self) -> Picture:
        """Waits for a picture; broken ones are counted."""
        while True:
            image = CAMERA.take(self._reader, began=self._began)()
            self._began = True
            if image is not None:
                return image, None
            self.decode_errors += 1

    def interrupt(self) -> None:
        """Lets a waiting `read` go."""
        CAMERA.leave(self._reader)

    close = interrupt


class BrowserSound:
    """The sound that a page sends."""

    def __init__(self, spec: str) -> None:
        _check(spec)
        self._reader, self._began = 0, False

    def open(self) -> None:
        """Raises SourceError where no live page is served."""
        self._reader = MICROPHONE.subscribe(Wish())

    def read(self) -> Sound:
        """Waits for sound."""
        sound = MICROPHONE.take(self._reader, began=self._began)
        self._began = True
        lost, MICROPHONE.lost = MICROPHONE.lost, False
        return dataclasses.replace(sound, lost=True) if lost else sound

    def interrupt(self) -> None:
        """Lets a waiting `read` go."""
        MICROPHONE.leave(self._reader)

    close = interrupt


def pcm(data: bytes, rate_hz: int) -> Sound:
    """16-bit PCM, mono, little-endian, as sound; half a sample at the end is left out."""
    samples = np.frombuffer(data, "<i2", len(data) // 2).astype(np.float32) / np.float32(32768)
    return Sound(samples, rate_hz)


def decoded(data: bytes) -> NDArray[np.uint8] | None:
    """A JPEG as uint8 [H, W, 3] RGB; None for what is none, or is larger than `PICTURE_PX` on a side."""
    import cv2

    if not fits(jpeg_size_px(data)):
        return None
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else np.ascontiguousarray(image[:, :, ::-1])


def fits(size_px: tuple[int, int] | None) -> bool:
    """Whether a picture of this size is decoded."""
    return size_px is not None and 0 < min(size_px) <= max(size_px) <= PICTURE_PX


def jpeg_size_px(data: bytes) -> tuple[int, int] | None:
    """Width and height as the header says (ITU-T T.81, B.2.2), before anything is decoded; None where it is no JPEG."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        at += 2 + length
    return None


def _check(spec: str) -> None:
    if spec != SPEC:
        raise SourceError(f"{spec} is no browser", hint=f"write {SPEC}")

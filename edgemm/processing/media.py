"""Files on disk: what they hold, their frames, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import SourceError

if TYPE_CHECKING:
    from av.container import InputContainer

Kind = Literal["image", "audio", "video"]

_HEAD_BYTES = 4096
_IMAGE_MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\x00",
    b"MM\x00*",
    b"\x00\x00\x00\x0cjP  ",
)
_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")
_HINT = "give a picture, a sound or a video file"


class VideoFrame(NamedTuple):
    """`image` uint8 `[H, W, 3]` RGB, upright; `t_s` seconds from the first frame."""

    image: NDArray[np.uint8]
    t_s: float


def check_file(path: str | os.PathLike[str]) -> Path:
    """The path, if it is a file with something in it that may be read; else `SourceError`."""
    file = Path(path)
    try:
        if file.is_dir():
            raise SourceError(f"{file} is a directory: expected a file", hint=_HINT)
        if not file.exists():
            raise SourceError(f"{file} does not exist", hint="check the path")
        if file.is_file() and file.stat().st_size == 0:
            raise SourceError(f"{file} is empty (0 bytes)", hint="copy or record it again")
        with file.open("rb"):
            return file
    except (OSError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{file} cannot be read: {error}", hint="check its permissions") from error


def read_head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def is_text(head: bytes) -> bool:
    """Whether the first bytes are plain text: FFmpeg takes some for a terminal recording."""
    controls = sum(byte < 32 and byte not in (9, 10, 12, 13, 27) for byte in head)
    if controls or not head:
        return False
    try:
        head[: max(1, len(head) - 3)].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 6
    return True


def _is_image(head: bytes) -> bool:
    if head.startswith(_IMAGE_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return True
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (
        12,
        40,
        52,
        56,
        64,
        108,
        124,
    ):
        return True
    if head[4:8] == b"ftyp" and head[8:12] in _IMAGE_BRANDS:
        return True
    return head[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6") and head[2:3].isspace()


def _unreadable(file: Path, what: str, error: Exception | str) -> SourceError:
    reason = str(error).split("\n")[0]
    return SourceError(f"{file} is not {what} that can be decoded: {reason}", hint=_HINT)


@contextmanager
def open_media(path: str | os.PathLike[str], what: str) -> Iterator[InputContainer]:
    """A PyAV container of a local file; every failure while it is open becomes a `SourceError`."""
    import av

    file = check_file(path)
    if is_text(read_head(file)):
        raise SourceError(f"{file} is a text file: expected {what}", hint=_HINT)
    try:
        # file: keeps FFmpeg from reading a name such as "concat:..." as a protocol.
        with av.open(f"file:{file}", metadata_errors="ignore") as container:
            yield container
    except av.FFmpegError as error:
        raise _unreadable(file, what, error.strerror or error) from error


def pictures_of(container: InputContainer) -> Any:
    """The first real video stream, or None: cover art in a sound file is none."""
    import av

    cover = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if not s.disposition & cover), None)


def sniff(path: str | os.PathLike[str]) -> Kind:
    """What the file holds, by its content and never by its name.

    Raises `SourceError` for a missing, empty or unreadable file, a directory, a text, or an unknown
    format.
    """
    file = check_file(path)
    head = read_head(file)
    if _is_image(head):
        return "image"
    if head.startswith(b"\x89MCAP"):
        raise SourceError(f"{file} is an MCAP recording", hint=f"run: edgemm run --camera {file}")
    with open_media(file, "a picture, a sound or a video") as container:
        if pictures_of(container) is not None:
            return "video"
        if container.streams.audio:
            return "audio"
    raise _unreadable(file, "a picture, a sound or a video", "it has no such stream")


def iter_video(path: str | os.PathLike[str]) -> Iterator[VideoFrame]:
    """Every frame of a video file in order, turned upright as its metadata says.

    Raises `SourceError` where the file is no video or is torn.
    """
    file = check_file(path)
    count = 0
    with open_media(file, "a video") as container:
        stream = pictures_of(container)
        if stream is None:
            raise _unreadable(file, "a video", "it has no pictures")
        stream.thread_type = "AUTO"
        first_s: float | None = None
        for frame in container.decode(stream):
            time_s = float(frame.time) if frame.time is not None else count / 25.0
            first_s = time_s if first_s is None else first_s
            image = np.rot90(frame.to_ndarray(format="rgb24"), (frame.rotation // 90) % 4)
            yield VideoFrame(np.ascontiguousarray(image), time_s - first_s)
            count += 1
    if not count:
        raise _unreadable(file, "a video", "no frame could be decoded")

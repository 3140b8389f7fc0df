"""Which frames of a clip a model sees."""

from __future__ import annotations

from collections.abc import Iterator

from edgemm.errors import InputError
from edgemm.processing.media import VideoFrame


def sample_indices(total: int, count: int) -> list[int]:
    """`count` indices spread evenly over `total` frames; all where there are fewer.

    Frame `i` of the result is `floor(i · total / count)`, as transformers' video processors sample.
    """
    if total < 1 or count < 1:
        raise InputError(f"cannot take {count} of {total} frames: expected at least one of at least one")
    if count >= total:
        return list(range(total))
    return [index * total // count for index in range(count)]


def sample_fps(frames: Iterator[VideoFrame], fps: float) -> Iterator[VideoFrame]:
    """At most `fps` frames a second: the first at or after each tick of `1 / fps`."""
    if not fps > 0:
        raise InputError(f"cannot sample at {fps} frames a second: expected more than 0")
    tick = 0
    for frame in frames:
        # Half a microsecond forgives the rounding of time stamps.
        if frame.t_s + 5e-7 >= tick / fps:
            yield frame
            tick = int((frame.t_s + 5e-7) * fps) + 1

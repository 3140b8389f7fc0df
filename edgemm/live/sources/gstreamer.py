"""`csi://0`: a camera on a Jetson's CSI port, by GStreamer in a child process.

OpenCV's wheels are built without GStreamer, and a camera driver may hang in native code. The elements themselves
can only be tested on a Jetson.
"""

from __future__ import annotations

import re
from fractions import Fraction

from edgemm.errors import SourceError
from edgemm.live.sources.base import TransientSourceError, Wish
from edgemm.live.sources.child import ChildReader

SIZE_PX = (1280, 720)
FPS = 30.0


class GstReader(ChildReader):
    """Reads a pipeline in the words of gst-launch whose end gives BGRx pictures of (width, height) `size_px`."""

    def __init__(self, spec: str, pipeline: str, size_px: tuple[int, int]) -> None:
        super().__init__(spec, size_px)
        self._pipeline = pipeline

    def command(self, fd: int) -> list[str]:
        """gst-launch with the pipeline."""
        return ["gst-launch-1.0", "-q", *self._pipeline.split(), "!", "fdsink", f"fd={fd}", "sync=false"]

    def missing(self, program: str) -> SourceError:
        """Which package has it."""
        return SourceError(
            f"{self._spec} needs {program}, which is not installed", hint="run: sudo apt install gstreamer1.0-tools"
        )

    def ended(self, lines: list[str]) -> SourceError:
        """The first error that GStreamer reports; final where an element does not exist."""
        errors = [line for line in lines if "ERROR" in line or "no element" in line]
        why = (errors or lines)[0].removeprefix("WARNING: erroneous pipeline: ")
        if "no element" in why:
            return SourceError(
                f"{self._spec}: {why}", hint="csi:// is for a Jetson with its GStreamer elements; try --camera 0"
            )
        return TransientSourceError(f"{self._spec} ended: {why}", hint="is the camera's ribbon plugged in?")


def csi_video(spec: str, wish: Wish) -> GstReader:
    """Pictures of a CSI camera, scaled by the chip. Raises SourceError for another form than csi://0."""
    match = re.fullmatch(r"csi://(\d{1,2})", spec)
    if match is None:
        raise SourceError(f"{spec} names no CSI camera", hint="write csi://0")
    size_px = wish.size_px or SIZE_PX
    return GstReader(spec, csi_pipeline(int(match[1]), size_px, wish.fps or FPS), size_px)


def csi_pipeline(sensor: int, size_px: tuple[int, int], fps: float) -> str:
    """From a sensor to BGRx in the memory of the CPU, by NVIDIA's elements (Jetson Linux Developer Guide,
    Accelerated GStreamer)."""
    rate = Fraction(fps).limit_denominator(1001)
    return (
        f"nvarguscamerasrc sensor-id={sensor}"
        f" ! video/x-raw(memory:NVMM),framerate={rate.numerator}/{rate.denominator}"
        f" ! nvvidconv ! video/x-raw,format=BGRx,width={size_px[0]},height={size_px[1]}"
    )

"""`edgemm devices`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb


def devices(io: Io) -> None:
    """Cameras and microphones, with the names that --camera and --mic take."""
    from edgemm.measure.machine import find_devices

    found = find_devices()
    io.document(asdict(found))
    if io.json:
        return
    from edgemm.cli.tables import table

    cameras = table("cameras", "--camera", "name", "formats", "also after a replug")
    for camera in found.cameras:
        cameras.add_row(camera.spec, camera.name, ", ".join(map(_format, camera.formats)), camera.lasting)
    microphones = table("microphones", "--mic", "name", "rate", "channels")
    for mic in found.microphones:
        name = f"{mic.name} (default)" if mic.default else mic.name
        microphones.add_row(mic.spec, name, f"{mic.rate_hz} Hz", str(mic.channels))
    io.show(cameras if found.cameras else "no camera")
    io.show(microphones if found.microphones else "no microphone")
    for problem in found.problems:
        io.show(f"{problem.what}: {problem.detail}" + (f"; {problem.fix}" if problem.fix else ""))
    io.show("always there: a file, a folder of pictures, rtsp://…, http://…, screen://, test://")


def _format(item: Any) -> str:
    size = f" {item.largest_px[0]}x{item.largest_px[1]}" if item.largest_px else ""
    return f"{item.name}{size}"


verb = as_verb(devices)

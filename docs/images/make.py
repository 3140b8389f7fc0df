"""Makes run.jpg and run.webp: the sample clip as `edgemm run --record` annotates it, live.

python docs/images/make.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
from PIL import Image

from edgemm.cli.app import invoke

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(__file__).with_name("run.webp")
PICTURES_PER_S, WIDTH_PX, QUALITY = 4, 400, 20


def main() -> None:
    """Plays the clip once; the animation shows `PICTURES_PER_S` of the frames that were looked at."""
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder, "seen.mp4")
        clip = ROOT / "samples" / "clip" / "clip.mp4"
        record = ["--record", str(seen), "--record", str(TARGET.with_name("run.jpg"))]
        if invoke(["run", "--camera", str(clip), *record, "--no-show"]):
            raise SystemExit("the run failed")
        pictures = list(_pictures(seen))
    # Small key frame distances: every picture differs from the one before in most places.
    pictures[0].save(
        TARGET, save_all=True, append_images=pictures[1:], duration=1000 // PICTURES_PER_S, loop=0, quality=QUALITY,
        kmin=3, kmax=5,
    )  # fmt: skip
    print(f"{TARGET.relative_to(ROOT)}: {len(pictures)} pictures, {TARGET.stat().st_size / 1e3:.0f} kB")


def _pictures(video: Path) -> Iterator[Image.Image]:
    """Pictures of a video, `PICTURES_PER_S` of them, `WIDTH_PX` wide."""
    with av.open(str(video)) as container:
        next_s = 0.0
        for frame in container.decode(video=0):
            if frame.time >= next_s:
                next_s += 1 / PICTURES_PER_S
                yield frame.to_image(width=WIDTH_PX, height=WIDTH_PX * frame.height // frame.width)


if __name__ == "__main__":
    main()

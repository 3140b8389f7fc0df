"""Every constant of the generator, fixed before anything is trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

from edgemm.errors import UsageError

SPLITS = ("train", "validation", "test", "unseen")
"""`test` has known sprites on backgrounds that training never saw; `unseen` has such backgrounds and such sprites."""


@dataclass(frozen=True)
class ScenesConfig:
    """Shares are of the picture's area or edge, or of how often something happens. `sha256` names the whole.

    `visible` is the least share of an object's pixels that others leave uncovered. `margin` is how far apart two
    middles must be, as a share of the edge, for one to be left of or above the other. `held_out` is the share of
    concepts, and of photographs, that training never sees; so are the painted backgrounds `held_out_textures`.
    """

    seed: int = 20_261_123
    size_px: int = 224
    objects: tuple[int, int] = (1, 5)
    area: tuple[float, float] = (0.03, 0.25)
    crowded: float = 0.9
    tilt_deg: float = 20.0
    mirrored: float = 0.5
    again: float = 0.3
    visible: float = 0.6
    tries: int = 40
    distractors: tuple[int, int] = (0, 3)
    distractor_area: tuple[float, float] = (0.001, 0.012)
    margin: float = 0.18
    photo: float = 0.4
    photo_blur_px: tuple[float, float] = (3.0, 9.0)
    textures: tuple[str, ...] = ("plain", "gradient", "clouds", "stripes", "dots", "checks", "waves", "patches")
    held_out_textures: tuple[str, ...] = ("waves", "patches")
    held_out: float = 0.15
    colour_share: float = 0.55
    frames: int = 8
    frame_period_s: float = 0.25
    way: tuple[float, float] = (0.35, 0.55)
    growth: tuple[float, float] = (1.8, 2.6)
    bystanders: tuple[int, int] = (0, 2)
    voices: tuple[str, ...] = ("slt", "rms", "awb")
    noise_db: tuple[float, float] = (8.0, 30.0)
    reverberation_s: tuple[float, float] = (0.05, 0.4)
    jpeg_quality: int = 92

    @property
    def sha256(self) -> str:
        """Hash of all constants, for the report."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def rng(self, split: str, kind: str, index: int) -> np.random.Generator:
        """The generator of one example: no example depends on how many others were made, or by whom.

        Raises UsageError for a split that there is not.
        """
        if split not in SPLITS:
            raise UsageError(f"there is no split {split}: expected one of {', '.join(SPLITS)}")
        name = f"{self.seed}/{split}/{kind}/{index}"
        return np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))

    def is_held_out(self, name: str) -> bool:
        """Whether training must never see what has this name: decided by its hash, not by a list or an order."""
        first = hashlib.sha256(f"{self.seed}/held out/{name}".encode()).digest()[:8]
        return int.from_bytes(first) < self.held_out * 2**64

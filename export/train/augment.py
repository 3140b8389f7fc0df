"""Pictures and sounds a little different each time; torch's generator decides, so that a resumed run goes on alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_COLOUR, _TURN_DEGREES, _SHIFT = 0.3, 7.0, 0.05
_GAIN_DB, _NOISE_DB = 6.0, (12.0, 40.0)


class Augment:
    """Colour, small turns and shifts of pictures (kornia's); gain and noise of sounds. None of them mirrors."""

    def __init__(self, seed: int) -> None:
        from kornia.augmentation import AugmentationSequential, ColorJiggle, RandomAffine

        torch.manual_seed(seed)
        colour = ColorJiggle(_COLOUR, _COLOUR, _COLOUR, _COLOUR / 10, p=0.8)
        move = RandomAffine(_TURN_DEGREES, (_SHIFT, _SHIFT), (0.9, 1.1), p=0.8)
        self._picture: Any = AugmentationSequential(colour, move, data_keys=None)

    def picture(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] → the same."""
        return self._run({"input": _tensor(image)})[0]

    def boxed(
        self, image: NDArray[np.uint8], boxes_px: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """A picture and boxes [N, 4] (x0, y0, x1, y1), which follow it and are cut at its edges."""
        if not len(boxes_px):
            return self.picture(image), boxes_px
        found, moved = self._run({"input": _tensor(image), "bbox_xyxy": torch.from_numpy(boxes_px)[None]})
        height, width = image.shape[:2]
        return found, np.clip(moved, 0, [width, height, width, height]).astype(np.float32)

    def _run(self, what: dict[str, torch.Tensor]) -> tuple[NDArray[np.uint8], Any]:
        out = self._picture(what)
        image = (out["input"][0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        boxes = out["bbox_xyxy"][0].numpy() if "bbox_xyxy" in out else None
        return np.ascontiguousarray(image), boxes

    def sound(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [samples] → the same, louder or quieter, with white noise."""
        gain_db, noise_db = (torch.rand(2) * torch.tensor([2 * _GAIN_DB, _NOISE_DB[1] - _NOISE_DB[0]])).tolist()
        level = float(np.sqrt(np.mean(samples**2))) * 10 ** (-(noise_db + _NOISE_DB[0]) / 20)
        noise = torch.randn(len(samples)).numpy() * level
        changed: NDArray[np.float32] = ((samples + noise) * 10 ** ((gain_db - _GAIN_DB) / 20)).astype(np.float32)
        return changed


def _tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255

"""What Frambicus's frozen vision tower makes of the pictures and clips of rows, computed once and kept.

Grids of a picture are the same at every epoch, unless pictures are augmented.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemm.export.train.augment import Augment
from edgemm.export.train.data import Sample
from edgemm.export.train.options import TrainOptions

Looked = tuple[list[torch.Tensor], torch.Tensor]
"""The tower's grids of some frames, [F, C, h, w] in fp16 each, and the frames' times in seconds [F]."""

SHOWN = ("video", "image", "file_name")
"""The fields that name what a row shows."""

_FRAMES = 8


class Grids:
    """What `model` sees of rows. `keep_in` names where that stays."""

    def __init__(self, model: Any, processor: Any, options: TrainOptions) -> None:
        self._model, self._processor = model, processor
        self._precision = options.precision
        self._augment = Augment(options.seed) if options.augment else None
        self._place: Path | None = None

    def keep_in(self, place: Path) -> None:
        """Keep grids in a folder of their tower: one of other weights, or in another precision, makes others."""
        sha = hashlib.sha256(self._precision.encode())
        for values in self._model.vision.state_dict().values():
            sha.update(values.cpu().numpy().tobytes())
        self._place = place / sha.hexdigest()[:16]
        self._place.mkdir(parents=True, exist_ok=True)

    def of(self, samples: Sequence[Sample], *, training: bool) -> dict[str, Any]:
        """`grids` [B, F, C, h, w] of all rows, `frame_times_s` and `frame_mask` [B, F]."""
        seen = self._looked(samples, training=training)
        longest = max(len(times) for _, times in seen)
        grids = [torch.stack([_filled(g[i].float(), longest) for g, _ in seen]) for i in range(len(seen[0][0]))]
        times = torch.stack([_filled(t, longest) for _, t in seen])
        lengths = torch.tensor([len(t) for _, t in seen])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        return {"grids": grids, "frame_times_s": times, "frame_mask": mask}

    def _looked(self, samples: Sequence[Sample], *, training: bool) -> list[Looked]:
        kept = [None if training and self._augment else self._kept(s) for s in samples]
        found = [_read(path) if path is not None and path.is_file() else None for path in kept]
        missing = [i for i, looked in enumerate(found) if looked is None]
        if missing:
            computed = self._computed([samples[i] for i in missing], training=training)
            for i, looked in zip(missing, computed, strict=True):
                found[i], path = looked, kept[i]
                if path is not None:
                    _keep(path, looked)
        return [looked for looked in found if looked is not None]

    def _kept(self, sample: Sample) -> Path | None:
        """Where a row's grids are kept, if its picture has a name."""
        name = next((sample.values[n] for n in SHOWN if isinstance(sample.values.get(n), str)), None)
        if self._place is None or name is None:
            return None
        return self._place / f"{hashlib.sha256(str((sample.root / name).resolve()).encode()).hexdigest()}.npz"

    def _computed(self, samples: Sequence[Sample], *, training: bool) -> list[Looked]:
        clips = [_frames(sample) for sample in samples]
        if training and self._augment:
            clips = [([self._augment.picture(f) for f in frames], times) for frames, times in clips]
        pictures = [frame for frames, _ in clips for frame in frames]
        looked = self._processor.look(pictures)["pixel_values"][:, 0]
        device = next(self._model.vision.parameters()).device
        looked = looked.to(device, memory_format=torch.channels_last)  # half the time of the other order on a CPU
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            grids = [grid.half().cpu() for grid in self._model.vision.grids(looked)]
        parts = zip(*(grid.split([len(frames) for frames, _ in clips]) for grid in grids), strict=True)
        return [(list(own), torch.from_numpy(times)) for own, (_, times) in zip(parts, clips, strict=True)]


def _frames(sample: Sample) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
    if not sample.has("video"):
        return [sample.picture()], np.zeros(1, np.float32)
    frames, times = sample.frames(_FRAMES)
    return list(frames), times


def _read(path: Path) -> Looked:
    kept = np.load(path)
    return [torch.from_numpy(kept[f"g{i}"]) for i in range(len(kept.files) - 1)], torch.from_numpy(kept["times"])


def _keep(path: Path, looked: Looked) -> None:
    grids, times = looked
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, times=times.numpy(), **{f"g{i}": grid.numpy() for i, grid in enumerate(grids)})
    partial.replace(path)


def _filled(values: torch.Tensor, length: int) -> torch.Tensor:
    """The first axis filled up with zeros."""
    missing = length - len(values)
    return values if not missing else torch.cat([values, values.new_zeros(missing, *values.shape[1:])])

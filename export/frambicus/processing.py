"""Pictures, sound and text → what the model takes, by the same code that a device runs (`edgemm.processing`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from edgemm.errors import InputError
from edgemm.export.frambicus.locate import located
from edgemm.export.frambicus.modeling import IGNORED
from edgemm.export.image_spec import image_spec
from edgemm.processing.audio import to_mono_16k
from edgemm.processing.image import preprocess, to_rgb

_RATE_HZ = 16_000
_SHORTEST = 1600  # samples: the encoder's kernels need some


class FrambicusImageProcessor(BaseImageProcessor):
    """A picture → pixel_values, (x − 127) / 128 of the whole picture stretched to a square.

    Nothing is cut off: an object at the edge has a box, and boxes in 0…1 are those of the picture as it came.
    """

    model_input_names = ("pixel_values",)

    def __init__(self, **settings: Any) -> None:
        defaults: dict[str, Any] = {
            "size": {"height": 224, "width": 224},
            "resample": 2,
            "do_rescale": False,
            "do_normalize": True,
            "image_mean": [127.0, 127.0, 127.0],
            "image_std": [128.0, 128.0, 128.0],
        }
        super().__init__(**(defaults | settings))

    def __call__(self, image: Any) -> NDArray[np.float32]:
        """A path, a PIL image or uint8 [H, W, 3] → float32 [3, height, width]. Raises as `to_rgb` does."""
        values: NDArray[np.float32] = preprocess(to_rgb(image), image_spec(self.to_dict(), 0)).pixel_values[0]
        return values


class FrambicusProcessor(ProcessorMixin):
    """Image processor, feature extractor and tokenizer as one."""

    model_input_names: ClassVar[list[str]] = ["pixel_values", "input_values", "input_ids", "attention_mask"]

    def __init__(self, image_processor: Any, feature_extractor: Any, tokenizer: Any, **kwargs: Any) -> None:
        super().__init__(image_processor, feature_extractor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, name: Any, **kwargs: Any) -> Any:
        """transformers' own, and `"frambicus"` is the checkpoint of the repository."""
        return super().from_pretrained(located(name), **kwargs)

    def __call__(
        self,
        images: Sequence[Any] | None = None,
        text: Sequence[str] | None = None,
        audio: Sequence[Any] | None = None,
        *,
        task: str = "caption",
        targets: Sequence[str] | None = None,
        frame_times_s: Sequence[Sequence[float]] | None = None,
        sampling_rate: int = _RATE_HZ,
    ) -> BatchFeature:
        """A batch: every argument has one entry an example.

        images: a picture, a sequence of frames, or None; text: what stands before the task's token (a question, a
        text to embed); audio: samples or None; targets: what the model should say, which makes `labels`. Without
        targets prompts are padded on the left, to be continued. Raises InputError for batches of different lengths.
        """
        given = [x for x in (images, text, audio, targets, frame_times_s) if x is not None]
        if not given or len({len(x) for x in given}) != 1:
            raise InputError(f"a batch of {[len(x) for x in given]} examples: expected one number, at least one input")
        data: dict[str, Any] = self.write(task, text or [""] * len(given[0]), targets)
        data |= {} if images is None else self.look(images, frame_times_s)
        data |= {} if audio is None else self.listen(audio, sampling_rate)
        return BatchFeature(data)

    def look(self, images: Sequence[Any], times_s: Sequence[Sequence[float]] | None = None) -> dict[str, torch.Tensor]:
        """`pixel_values` [B, F, 3, H, W], `frame_mask` [B, F] and, where given, `frame_times_s` [B, F]."""
        clips = [_frames(image) for image in images]
        longest = max(1, *(len(clip) for clip in clips))
        blank = np.zeros_like(self.image_processor(np.zeros((1, 1, 3), np.uint8)))
        values = [[self.image_processor(f) for f in clip] + [blank] * (longest - len(clip)) for clip in clips]
        lengths = torch.tensor([len(clip) for clip in clips])
        looked = {
            "pixel_values": torch.from_numpy(np.array(values, np.float32)),
            "frame_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }
        if times_s is not None:
            rows = [[*row, *[0.0] * (longest - len(row))] for row in times_s]
            looked["frame_times_s"] = torch.tensor(rows, dtype=torch.float32)
        return looked

    def listen(self, audio: Sequence[Any], rate_hz: int = _RATE_HZ) -> dict[str, torch.Tensor]:
        """`input_values` [B, samples] at 16 kHz and `input_values_mask`; None is a row without sound."""
        sounds = [np.zeros(0, np.float32) if s is None else to_mono_16k(s, rate_hz) for s in audio]
        length = max(_SHORTEST, *(len(s) for s in sounds))
        made = self.feature_extractor(
            sounds, sampling_rate=_RATE_HZ, padding="max_length", max_length=length, return_attention_mask=True
        )
        values = torch.from_numpy(np.stack(made["input_values"]).astype(np.float32))
        return {"input_values": values, "input_values_mask": torch.from_numpy(np.stack(made["attention_mask"])).long()}

    def write(self, task: str, texts: Sequence[str], targets: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` [B, S], with `labels` where there are targets."""
        prompts = [self.tokenizer.prompt(task, text) for text in texts]
        if targets is None:
            ids, mask = self._padded(prompts, self.tokenizer.pad_token_id, left=True)
            return {"input_ids": ids, "attention_mask": mask}
        said = [self.tokenizer.target(target) for target in targets]
        ids, mask = self._padded([p + t for p, t in zip(prompts, said, strict=True)], self.tokenizer.pad_token_id)
        wanted = [[IGNORED] * len(p) + t for p, t in zip(prompts, said, strict=True)]
        return {"input_ids": ids, "attention_mask": mask, "labels": self._padded(wanted, IGNORED)[0]}

    def _padded(self, rows: Sequence[list[int]], fill: int, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(row) for row in rows)
        gaps = [longest - len(row) for row in rows]
        filled = [_beside(row, [fill] * gap, left) for row, gap in zip(rows, gaps, strict=True)]
        mask = [_beside([1] * len(row), [0] * gap, left) for row, gap in zip(rows, gaps, strict=True)]
        return torch.tensor(filled), torch.tensor(mask)


def _beside(row: list[int], filling: list[int], left: bool) -> list[int]:
    return filling + row if left else row + filling


def _frames(image: Any) -> list[Any]:
    """A picture as one frame, a clip as its frames, None as none."""
    if image is None:
        return []
    if isinstance(image, (list, tuple)) or (isinstance(image, np.ndarray) and image.ndim == 4):
        return list(image)
    return [image]

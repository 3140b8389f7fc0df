"""`preprocessor_config.json` → the bundle's `ImageSpec`."""

from __future__ import annotations

from typing import Any

from edgemm.bundle.spec import ResizeCropSpec, TilesSpec
from edgemm.errors import CheckpointError

# PIL's numbers of its filters, as the configuration files store them.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}


def _statistics(config: dict[str, Any]) -> dict[str, Any]:
    rescale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    if not config.get("do_normalize", True):
        return {"rescale_factor": rescale}
    return {
        "rescale_factor": rescale,
        "mean": tuple(config["image_mean"]),
        "std": tuple(config["image_std"]),
    }


def _edge(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if "height" in size:
        return int(size["height"]), int(size["width"])
    edge = int(size.get("shortest_edge") or size.get("longest_edge"))
    return edge, edge


def _require(config: dict[str, Any], *keys: str) -> None:
    absent = [k for k in keys if k not in config]
    if not config or absent:
        raise CheckpointError(
            f"preprocessor_config.json lacks {', '.join(absent)}"
            if config
            else "the checkpoint has no preprocessor_config.json",
            hint="copy it from the model that was fine-tuned",
        )


def image_spec(config: dict[str, Any], size: int) -> ResizeCropSpec:
    """The spec of processors that resize and, if asked, cut the centre (CLIP's, ViT's and their kin)."""
    _require(config)
    resized = _edge(config.get("size", size))
    crops = bool(config.get("do_center_crop"))
    height, width = _edge(config.get("crop_size", size)) if crops else resized
    return ResizeCropSpec(
        height_px=height,
        width_px=width,
        fit="resize_then_crop" if crops else "stretch",
        resample=_RESAMPLE[int(config.get("resample", 2))],
        crop_fraction=min(1.0, height / resized[0]) if crops else 1.0,
        **_statistics(config),
    )


def tiles_spec(config: dict[str, Any], image_seq_len: int) -> TilesSpec:
    """The spec of Idefics3's and SmolVLM's processors."""
    _require(config, "size", "max_image_size")
    return TilesSpec(
        longest_edge=int(config["size"]["longest_edge"]),
        max_image_size=int(config["max_image_size"]["longest_edge"]),
        do_image_splitting=bool(config.get("do_image_splitting", True)),
        resample=_RESAMPLE[int(config.get("resample", 1))],
        image_seq_len=image_seq_len,
        **_statistics(config),
    )

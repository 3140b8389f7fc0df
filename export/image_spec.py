"""`preprocessor_config.json` → the bundle's `ImageSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemm.bundle.spec import AnyresSpec, EdgesSpec, NaFlexSpec, PatchesSpec, ResizeCropSpec, TilesSpec
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
    _require(config, *(("image_mean", "image_std") if config.get("do_normalize", True) else ()))
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


def square_fill(config: dict[str, Any]) -> tuple[int, int, int]:
    """The colour beside pictures that are filled up to squares: the mean of the statistics, cut to 8 bits."""
    red, green, blue = (int(x * 255) for x in config["image_mean"])
    return red, green, blue


def anyres_spec(config: dict[str, Any], pinpoints: Any, side: int, max_tiles: int) -> AnyresSpec:
    """The spec of LLaVA-OneVision's processor; tiles have `side` squared features."""
    _require(config, "size", "image_mean")
    if config.get("do_center_crop"):
        raise CheckpointError("preprocessor_config.json asks for a centre crop of tiles, which this family has not")
    return AnyresSpec(
        tile_px=_edge(config["size"])[0],
        side=side,
        pinpoints=tuple((int(h), int(w)) for h, w in pinpoints),
        max_tiles=max_tiles,
        square_fill=square_fill(config),
        resample=_RESAMPLE[int(config.get("resample", 3))],
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


def edges_spec(config: dict[str, Any], *, multiple_px: int = 1, stride_px: int | None = None) -> EdgesSpec:
    """The spec of processors that keep a picture's shape and bound its edges (DETR's, YOLOS').

    With `stride_px` the picture lies on a canvas that the longest possible one fits, rounded up to whole strides.
    """
    _require(config, "size")
    size = config["size"]
    if isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": config.get("max_size", 1333)}
    canvas = config.get("pad_size") if config.get("do_pad", True) else None
    if "max_height" in size:
        edges = int(size["max_height"]), int(size["max_width"])
        fixed = _edge(canvas) if canvas else edges
        if fixed != edges:
            raise CheckpointError(f"preprocessor_config.json pads {edges} to {fixed}: expected the same size")
        return EdgesSpec(longest_edge=max(edges), canvas_px=edges, resample=_resample(config), **_statistics(config))
    longest = int(size["longest_edge"])
    side = -(-longest // stride_px) * stride_px if stride_px else 0
    return EdgesSpec(
        shortest_edge=int(size["shortest_edge"]),
        longest_edge=longest,
        multiple_px=multiple_px,
        canvas_px=(side, side) if side else None,
        resample=_resample(config),
        **_statistics(config),
    )


def _resample(config: dict[str, Any]) -> Any:
    return _RESAMPLE[int(config.get("resample", 2))]


def patches_spec(config: dict[str, Any], video: dict[str, Any], vision: Any, options: Mapping[str, Any]) -> PatchesSpec:
    """The spec of Qwen's processors: `config` of the pictures, `video` of the videos, `vision` of the tower.

    A checkpoint without `video_preprocessor_config.json` bounds frames as it bounds pictures.
    """
    _require(config)
    low, high = _pixels(config)
    video_low, video_high = _pixels(video) if video else (low, high)
    merge = int(config.get("merge_size", vision.spatial_merge_size))
    if (merge, int(config.get("patch_size", vision.patch_size))) != (vision.spatial_merge_size, vision.patch_size):
        raise CheckpointError("preprocessor_config.json cuts other patches than the vision tower takes")
    return PatchesSpec(
        patch_px=vision.patch_size,
        merge=merge,
        temporal_patch=vision.temporal_patch_size,
        min_pixels=low,
        max_pixels=high,
        video_min_pixels=video_low,
        video_max_pixels=video_high,
        resample=_RESAMPLE[int(config.get("resample", 3))],
        rotary_theta=(vision.rope_parameters or {}).get("rope_theta", 10_000.0),
        **_statistics(config),
        **options,
    )


def _pixels(config: dict[str, Any]) -> tuple[int, int]:
    size = config.get("size") or {}
    low = config.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels")
    high = config.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels")
    if not low or not high:
        raise CheckpointError("preprocessor_config.json lacks min_pixels and max_pixels")
    return int(low), int(high)


def naflex_spec(config: dict[str, Any], vision: Any) -> NaFlexSpec:
    """The spec of SigLIP 2's NaFlex processor for the tower `vision`."""
    _require(config)
    if int(config.get("patch_size", vision.patch_size)) != vision.patch_size:
        raise CheckpointError("preprocessor_config.json cuts other patches than the vision tower takes")
    return NaFlexSpec(
        patch_px=vision.patch_size,
        max_patches=int(config.get("max_num_patches", 256)),
        grid=round(vision.num_patches**0.5),
        resample=_resample(config),
        **_statistics(config),
    )


def share_spec(config: dict[str, Any]) -> ResizeCropSpec:
    """The spec of ConvNeXt's processor: below 384 px the centre `crop_pct` of the picture, from there on all of it."""
    _require(config, "size")
    edge = _edge(config["size"])[0]
    resized = int(edge / float(config.get("crop_pct") or 224 / 256))
    whole = edge >= 384
    return ResizeCropSpec(
        height_px=edge,
        width_px=edge,
        fit="stretch" if whole else "resize_then_crop",
        resample=_RESAMPLE[int(config.get("resample", 3))],
        crop_fraction=1.0 if whole else edge / resized,
        **_statistics(config),
    )


def twice_normalized_spec(config: dict[str, Any], size: int) -> ResizeCropSpec:
    """The spec of EfficientNet's processor, which with `include_top` divides by the deviation twice."""
    spec = image_spec({"resample": 3} | config, size)
    mean = tuple(m + 1.0 for m in spec.mean) if config.get("rescale_offset") else spec.mean
    std = tuple(s * s for s in spec.std) if config.get("include_top", True) else spec.std
    return spec.model_copy(update={"mean": mean, "std": std})

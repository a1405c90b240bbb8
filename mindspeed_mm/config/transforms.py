"""The transforms that `train_pipeline` of data.json may name, with their parameters (see `data/decode/transforms.py`)."""

import dataclasses

from mindspeed_mm.schema import Node, Notes, build, did_you_mean, option

_INTERPOLATIONS = ("bicubic", "bilinear")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ToTensorVideo:
    """uint8 -> float32 in [0, 1]; other types are refused."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ToTensorAfterResize:
    """Any type -> float32, divided by 255."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderNorm:
    """`ae_norm`: [0, 1] -> [-1, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Normalize:
    """`norm_fun`: (x - mean) / std per channel."""

    mean: tuple[float, ...] = option((0.5, 0.5, 0.5), at_least=-1e6, at_most=1e6)
    std: tuple[float, ...] = option((0.5, 0.5, 0.5), above=0, at_most=1e6)
    inplace: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RandomHorizontalFlipVideo:
    """Mirror the whole clip with probability p."""

    p: float = option(0.5, at_least=0, at_most=1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CenterCropResizeVideo:
    """Crop to the aspect ratio of `size`, then resize to it."""

    size: tuple[int, int] = option(at_least=1, at_most=2**16)  # height, width
    top_crop: bool = False
    interpolation_mode: str = option("bilinear", choices=_INTERPOLATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LongSideResizeVideo:
    """Resize to fit inside `size`, keeping the aspect ratio."""

    size: tuple[int, int] = option(at_least=1, at_most=2**16)
    skip_low_resolution: bool = False
    interpolation_mode: str = option("bilinear", choices=_INTERPOLATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MaxHWStrideResizeVideo:
    """Resize to at most `max_hxw` pixels, optionally towards one of five aspect ratios."""

    max_hxw: int = option(at_least=1)
    force_5_ratio: bool = True
    hw_stride: int = option(16, at_least=1, at_most=2**16)
    interpolation_mode: str = option("bilinear", choices=_INTERPOLATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MaxHWResizeVideo:
    """Like MaxHWStrideResizeVideo with force_5_ratio and stride 16."""

    max_hxw: int = option(at_least=1)
    interpolation_mode: str = option("bilinear", choices=_INTERPOLATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SpatialStrideCropVideo:
    """Crops the centre to multiples of `stride`, optionally to one of five aspect ratios."""

    stride: int = option(at_least=1, at_most=2**16)
    force_5_ratio: bool = True


TRANSFORMS = {
    "ToTensorVideo": ToTensorVideo,
    "ToTensorAfterResize": ToTensorAfterResize,
    "ToTensor": ToTensorVideo,
    "ae_norm": AutoencoderNorm,
    "norm_fun": Normalize,
    "RandomHorizontalFlipVideo": RandomHorizontalFlipVideo,
    "RandomHorizontalFlip": RandomHorizontalFlipVideo,
    "CenterCropResizeVideo": CenterCropResizeVideo,
    "LongSideResizeVideo": LongSideResizeVideo,
    "MaxHWStrideResizeVideo": MaxHWStrideResizeVideo,
    "MaxHWResizeVideo": MaxHWResizeVideo,
    "SpatialStrideCropVideo": SpatialStrideCropVideo,
}


def read_transforms(node: Node, notes: Notes | None) -> tuple:
    """The list of `{"trans_type": name, "param": {...}}` as transform configs."""
    if not isinstance(node.value, list):
        raise node.error("expected a list of transforms")
    return tuple(_read_transform(item, notes) for item in node.value)


def _read_transform(node: Node, notes: Notes | None):
    entry = build(_Entry, node, notes)
    if entry.trans_type not in TRANSFORMS:
        raise node.value["trans_type"].error(
            f"{entry.trans_type!r} is not a transform{did_you_mean(entry.trans_type, TRANSFORMS)}; "
            f"known: {', '.join(TRANSFORMS)}"
        )
    return build(
        TRANSFORMS[entry.trans_type], entry.param or Node({}, node.file, node.line, f"{node.path}.param"), notes
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    trans_type: str
    param: Node | None = option(None, read=lambda node, notes: node)

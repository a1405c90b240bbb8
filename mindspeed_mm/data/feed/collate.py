"""Joins samples into a batch, padded to whole latents and patches ("GroupLength")."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mindspeed_mm.data.feed.samples import Sample
from mindspeed_mm.data.workers.buffers import Allocate
from mindspeed_mm.errors import DataError
from mindspeed_mm.types import Batch, Posterior, TextFeatures, TokenIds

Extent = tuple[int, int, int]  # frames, height, width


def collate(
    samples: Sequence[Sample],
    addresses: Sequence[tuple[int, int]],
    *,
    strides: Extent,
    patch_size: int,
    patch_size_t: int = 1,
    target: Extent | None = None,
    allocate: Allocate = torch.empty,
) -> Batch:
    """Stacks samples; pads the end of each axis with zeros. `keep` marks video, not padding, on the latent grid.

    addresses: (epoch, index) of each sample. strides: (t, h, w) of the autoencoder. target: extent to which every
    sample is padded or cut; None for grouped samples, which must share one shape and fill the latent grid (else
    DataError). allocate: makes the fp32 tensor of the video if a copy is needed.
    """
    stored = [sample.video for sample in samples if isinstance(sample.video, Posterior)]
    if stored:
        return _collate_stored(samples, addresses, stored, target)
    videos = [sample.video for sample in samples if isinstance(sample.video, Tensor)]
    extents = [_extent(video) for video in videos]
    if target is None and len(set(extents)) > 1:
        shapes = ", ".join(f"{sample.path} {sample.key}" for sample in samples)
        raise DataError(f"one batch holds samples of different shapes: {shapes}; grouped samples must have one shape")
    padded = padded_extent(target or extents[0], strides, patch_size, patch_size_t)
    keep = torch.stack([latent_mask(extent, padded, strides) for extent in extents])
    if target is None and not keep.all():
        multiples = [stride * patch_size for stride in strides[1:]]
        raise DataError(
            f"{samples[0].path}: a sample of {samples[0].key} leaves part of the latent grid empty; height and width "
            f"must be multiples of {multiples[0]} and {multiples[1]} (autoencoder stride x patch_size): see hw_stride"
        )
    return Batch(
        video=_stack(videos, padded, allocate),
        keep=keep,
        **_texts_and_names(samples, addresses),
    )


def _collate_stored(
    samples: Sequence[Sample], addresses: Sequence[tuple[int, int]], stored: list[Posterior], target: Extent | None
) -> Batch:
    """Joins stored samples. They are grouped: extraction has padded them and checked that they fill the latent grid."""
    shapes = {tuple(posterior.mean.shape) for posterior in stored}
    if target is not None or len(shapes) > 1:
        names = ", ".join(f"{sample.path} {sample.key}" for sample in samples)
        raise DataError(f"one batch holds stored features of different shapes: {names}; use group_data true")
    video = Posterior.concatenate([one.map(lambda value: value[None]) for one in stored])
    batch, _, *extent = video.mean.shape
    return Batch(video=video, keep=torch.ones(batch, *extent, dtype=torch.bool), **_texts_and_names(samples, addresses))


def _texts_and_names(samples: Sequence[Sample], addresses: Sequence[tuple[int, int]]) -> dict:
    tokens = [sample.text for sample in samples if isinstance(sample.text, TokenIds)]
    stored = [sample.text for sample in samples if isinstance(sample.text, TextFeatures)]
    pooled = [sample.pooled_text for sample in samples if sample.pooled_text is not None]
    return {
        "text": TextFeatures.concatenate(stored) if stored else _join(tokens),
        "pooled_text": _join(pooled) if pooled else None,
        "paths": tuple(sample.path for sample in samples),
        "addresses": tuple(addresses),
    }


def padded_extent(extent: Extent, strides: Extent, patch_size: int, patch_size_t: int = 1) -> Extent:
    """Smallest extent with whole latents and whole patches; the first frame has its own latent."""
    frames, height, width = extent
    stride_t, stride_h, stride_w = strides
    return (
        _up(frames - 1 + stride_t, stride_t * patch_size_t) + 1 - stride_t,
        _up(height, stride_h * patch_size),
        _up(width, stride_w * patch_size),
    )


def latent_mask(extent: Extent, padded: Extent, strides: Extent) -> Tensor:
    """[t,h,w] bool on the padded video's latent grid; True where a latent covers any of the video."""
    (stride_t, stride_h, stride_w), (frames, height, width) = strides, extent
    mask = torch.zeros((padded[0] - 1) // stride_t + 1, padded[1] // stride_h, padded[2] // stride_w, dtype=torch.bool)
    mask[
        : math.ceil((frames - 1) / stride_t) + 1,
        : math.ceil(height / stride_h),
        : math.ceil(width / stride_w),
    ] = True
    return mask


def _extent(video: Tensor) -> Extent:
    _, frames, height, width = video.shape
    return frames, height, width


def _up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple


def _stack(videos: Sequence[Tensor], padded: Extent, allocate: Allocate) -> Tensor:
    """[B,C,T,H,W]; each video is cut or padded with zeros to `padded`."""
    if len(videos) == 1 and tuple(videos[0].shape[1:]) == padded:
        return videos[0][None]  # no copy: one clip of 121x576x1024 is 0.9 GB
    batch = allocate((len(videos), videos[0].shape[0], *padded)).zero_()
    for place, video in zip(batch, videos, strict=True):
        frames, height, width = (min(have, room) for have, room in zip(video.shape[1:], padded, strict=True))
        place[:, :frames, :height, :width] = video[:, :frames, :height, :width]
    return batch


def _join(tokens: Sequence[TokenIds]) -> TokenIds:
    return TokenIds(torch.cat([item.ids for item in tokens]), torch.cat([item.keep for item in tokens]))

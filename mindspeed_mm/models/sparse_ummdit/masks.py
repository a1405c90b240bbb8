"""Masks of real keys, for each Skiparse pattern of a forward pass."""

import torch
from torch import Tensor

from mindspeed_mm.ops.attention import RealKeys, real_keys
from mindspeed_mm.ops.skiparse import padding, skip_keep
from mindspeed_mm.types import TextFeatures, sent

Pattern = tuple[int, bool]  # (sparsity, group)


def patch_keep(keep: Tensor, patch_size: int) -> Tensor:
    """[B,T,H,W] bool of latent pixels -> [B,S] of patches: a patch is real if any of its pixels is."""
    batch, t, h, w = keep.shape
    blocks = keep.reshape(batch, t, h // patch_size, patch_size, w // patch_size, patch_size)
    return blocks.any(dim=5).any(dim=3).flatten(1)


def used_columns(keep: Tensor, multiple: int) -> Tensor:
    """Text tokens to compute with, [L] int64: drops tokens that are real in no sample; keep: [B,L] bool.

    No result depends on the dropped tokens: captions are padded to 512 tokens and are far shorter. The length stays a
    multiple of `multiple`. If a sample has no real token, all are kept: then attention may use every token
    (`ops/attention.py`).
    """
    used = keep.any(0)
    count = int(used.sum()) if bool(keep.any(1).all()) else used.numel()
    length = -(-count // multiple) * multiple
    if length >= used.numel():
        return torch.arange(used.numel(), device=keep.device)
    # Real tokens first, in their order, then as many others as `multiple` requires.
    return torch.argsort(used, descending=True, stable=True)[:length]


def without_padding(text: TextFeatures, columns: Tensor) -> TextFeatures:
    """Keeps the tokens in `columns` (see `used_columns`), which are on the device of `text.keep`."""
    if columns.numel() == text.keep.shape[1]:
        return text
    return TextFeatures(text.sequence[:, sent(columns, text.sequence.device)], text.keep[:, columns], text.pooled)


def keys_of(
    patterns: set[Pattern], video: Tensor | None, text: Tensor, tokens: int, device: torch.device | None = None
) -> dict[Pattern, RealKeys | None]:
    """The real keys of each pattern, [k*B, S'/k + L]: a part of the video, then the text; None where all are real.

    video: [B,S] bool or None for all real; text: [B,L] bool; tokens: S. device: of the attention; default: the text's. Where
    keys are padded decides which masks are made, so with `video` and `text` on a device the host waits for it.
    """
    if video is not None:
        text = text.to(video.device)
    if video is None or bool(video.all()):
        text_is_real = bool(text.all())
        video = torch.ones(text.shape[0], tokens, dtype=torch.bool, device=text.device)
    else:
        text_is_real = False  # every pattern then has a mask
    return {
        (k, group): None
        if text_is_real and padding(tokens, k) == 0
        else real_keys(key_mask((k, group), video, text), device)
        for k, group in patterns
    }


def key_mask(pattern: Pattern, video: Tensor, text: Tensor) -> Tensor:
    """The mask of one pattern's keys; see `keys_of`."""
    k, group = pattern
    return torch.cat((skip_keep(video, k, group), text.repeat(k, 1)), dim=1)

"""Which keys are real, for each Skiparse pattern of a forward pass."""

import torch
from torch import Tensor

from mindspeed_mm.ops.skiparse import skip_keep

Pattern = tuple[int, bool]  # (sparsity, group)


def patch_keep(keep: Tensor, patch_size: int) -> Tensor:
    """[B,T,H,W] bool of latent pixels -> [B,S] of patches: a patch is real if any of its pixels is."""
    batch, t, h, w = keep.shape
    blocks = keep.reshape(batch, t, h // patch_size, patch_size, w // patch_size, patch_size)
    return blocks.any(dim=5).any(dim=3).flatten(1)


def key_masks(patterns: set[Pattern], video: Tensor | None, text: Tensor, tokens: int) -> dict[Pattern, Tensor]:
    """The mask of each pattern's keys, [k*B, S'/k + L] bool: a part of the video, then the text.

    video: [B,S] bool or None for all real; text: [B,L] bool; tokens: S.
    """
    if video is None:
        video = torch.ones(text.shape[0], tokens, dtype=torch.bool, device=text.device)
    return {(k, group): torch.cat((skip_keep(video, k, group), text.repeat(k, 1)), dim=1) for k, group in patterns}

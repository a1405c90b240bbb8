"""Which keys are real, for each Skiparse pattern of a forward pass."""

import torch
from torch import Tensor

from mindspeed_mm.ops.skiparse import padding, skip_keep
from mindspeed_mm.types import TextFeatures

Pattern = tuple[int, bool]  # (sparsity, group)


def patch_keep(keep: Tensor, patch_size: int) -> Tensor:
    """[B,T,H,W] bool of latent pixels -> [B,S] of patches: a patch is real if any of its pixels is."""
    batch, t, h, w = keep.shape
    blocks = keep.reshape(batch, t, h // patch_size, patch_size, w // patch_size, patch_size)
    return blocks.any(dim=5).any(dim=3).flatten(1)


def without_padding(text: TextFeatures, multiple: int) -> TextFeatures:
    """The text without the tokens that are real in no sample: nothing sees them, so no number changes.

    Captions are padded to 512 tokens and are far shorter. The length stays a multiple of `multiple`. A sample without any
    real token keeps all: it may be that nothing of it is real, and then attention sees everything (`ops/attention.py`).
    """
    used = text.keep.any(0)
    if not bool(text.keep.any(1).all()):
        return text
    count = int(used.sum())
    length = -(-count // multiple) * multiple
    if length == used.numel():
        return text
    # Real tokens first, in their order, then as many others as `multiple` asks for.
    columns = torch.argsort(used, descending=True, stable=True)[:length]
    return TextFeatures(text.sequence[:, columns], text.keep[:, columns], text.pooled)


def key_masks(patterns: set[Pattern], video: Tensor | None, text: Tensor, tokens: int) -> dict[Pattern, Tensor | None]:
    """The mask of each pattern's keys, [k*B, S'/k + L] bool: a part of the video, then the text; None where all are real.

    video: [B,S] bool or None for all real; text: [B,L] bool; tokens: S.
    """
    if video is None or bool(video.all()):
        text_is_real = bool(text.all())
        video = torch.ones(text.shape[0], tokens, dtype=torch.bool, device=text.device)
    else:
        text_is_real = False  # no pattern goes without a mask
    return {
        (k, group): None
        if text_is_real and padding(tokens, k) == 0
        else torch.cat((skip_keep(video, k, group), text.repeat(k, 1)), dim=1)
        for k, group in patterns
    }

"""Measures of a video that need no weights: how consistent neighbouring frames are, and how much moves."""

import torch

from mindspeed_mm.evaluation.samples import Video
from mindspeed_mm.ops import motion
from mindspeed_mm.ops.quality import ssim

_STRETCH = 8  # frames that are measured together, for memory
_FASTEST = 0.05  # share of the pixels that "motion, fastest" counts, as VBench's dynamic degree


def of_video(video: Video, device: torch.device) -> dict[str, float]:
    """{"frame consistency": SSIM, "flicker": percent, "motion": percent per second, ...}; {} for a single frame.

    frame consistency: SSIM of neighbouring frames; 1 for a still picture. flicker: mean distance of neighbouring
    frames in percent of the range of a channel; VBench's temporal flickering is 1 - flicker / 100. motion: mean length of
    the optical flow, in percent of the shorter side per second; "motion, fastest" is that of each frame's fastest 5 % of
    pixels, which small objects do not dilute.
    """
    frames = torch.from_numpy(video.frames)
    pairs = len(frames) - 1
    if pairs < 1:
        return {}
    per_second = 100 * video.fps / min(frames.shape[1:3])
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, pairs, _STRETCH):
        part = frames[start : start + _STRETCH + 1].to(device)
        unit = part.permute(0, 3, 1, 2).float() / 255
        lengths = motion.flow(motion.brightness(part)).norm(dim=1).flatten(1)
        fastest = lengths.topk(max(1, int(_FASTEST * lengths.shape[1])), dim=1).values
        rows = (
            ssim(unit[:-1, :, None], unit[1:, :, None]),
            100 * (unit[1:] - unit[:-1]).abs().flatten(1).mean(1),
            per_second * lengths.mean(1),
            per_second * fastest.mean(1),
        )
        sums += torch.stack([row.double().sum().cpu() for row in rows])
    names = ("frame consistency", "flicker", "motion", "motion, fastest")
    return dict(zip(names, (sums / pairs).tolist(), strict=True))

"""Chooses the frames of a clip: resamples to `train_fps`, speeds up, crops in time, cuts to a length for the VAE.

All functions are pure; the one random draw comes from the `random.Random` argument.
"""

import functools
import random

import numpy as np

from mindspeed_mm.config.data import PreprocessConfig
from mindspeed_mm.errors import DataError


def frame_step(fps: float, train_fps: float) -> float:
    """Distance between used frames, in frames of the file; frame rates within 0.1 of each other count as equal."""
    return 1.0 if abs(fps - train_fps) < 0.1 else fps / train_fps


def candidates(start: int, num_frames: int, fps: float, train_fps: float) -> np.ndarray:
    """Frame indices [n] int64 of the clip [start, start + num_frames), resampled to `train_fps`.

    numpy's arange in float64 is part of the rule: it adds multiples of (start + step) - start, whose rounding decides
    some indices (start 10, step 1.2 gives 15 at k = 5, not 16). A step below 1 repeats frames.
    """
    end = start + num_frames
    indices = np.arange(start, end, frame_step(fps, train_fps)).astype(np.int64)
    return indices[indices < end]


def speed_up(indices: np.ndarray, num_frames: int, speed_factor: float) -> np.ndarray:
    """Drops frames so that up to `speed_factor` times fewer indices remain, but at least `num_frames`; short clips are
    unchanged.
    """
    if speed_factor <= 1 or len(indices) <= num_frames:
        return indices
    # The original's int(len / (len / num_frames)) is num_frames - 1 for some lengths, so it never used those clips.
    count = max(num_frames, int(len(indices) / min(speed_factor, len(indices) / num_frames)))
    return indices[np.linspace(0, len(indices) - 1, count).astype(np.int64)]


def closest_length(length: int, min_num_frames: int, ae_stride_t: int, sp_size: int) -> int:
    """Largest y <= length with y = ae_stride_t n + 1, n + 1 divisible by sp_size and y >= min_num_frames; -1 if none."""
    latent_frames = (length - 1) // ae_stride_t + 1 if length >= 1 else 0
    latent_frames -= latent_frames % sp_size
    closest = (latent_frames - 1) * ae_stride_t + 1
    return closest if latent_frames > 0 and closest >= min_num_frames else -1


def selected_length(start: int, num_frames: int, fps: float, config: PreprocessConfig) -> tuple[int, int]:
    """(number of frames after resampling, number that `select` will return or -1), for the filter."""
    resampled, used = _counts(start, num_frames, fps, config.train_fps, config.num_frames, config.speed_factor)
    length = min(used, _window(config)) if used > config.num_frames else used
    return resampled, _closest(length, config)


@functools.lru_cache(maxsize=4096)  # the filter and the clip ask for it, and rows of a list share lengths and rates
def _counts(start: int, num_frames: int, fps: float, train_fps: float, wanted: int, speed: float) -> tuple[int, int]:
    resampled = candidates(start, num_frames, fps, train_fps)
    return len(resampled), len(speed_up(resampled, wanted, speed))


def select(start: int, num_frames: int, fps: float, config: PreprocessConfig, rng: random.Random) -> np.ndarray:
    """Frame indices [n] for one access to a clip. A longer clip gives a window at a random place.

    Raises DataError for a clip that is too short. Draws once from `rng`, only if the clip is longer than needed.
    """
    used = speed_up(candidates(start, num_frames, fps, config.train_fps), config.num_frames, config.speed_factor)
    if len(used) < config.num_frames and config.drop_short_ratio >= 1:
        raise DataError(f"{len(used)} frames at {config.train_fps:g} fps; need {config.num_frames}")
    if len(used) > config.num_frames:
        window = _window(config)
        # The original's upper bound is one less, so it never used the last frame of a clip.
        begin = rng.randint(0, max(0, len(used) - window))
        used = used[begin : begin + window]
    length = _closest(len(used), config)
    if length < 0:
        raise DataError(
            f"{len(used)} frames at {config.train_fps:g} fps; need {config.ae_stride_t}n+1, at least {config.min_num_frames}"
        )
    return used[:length]


def too_long(num_frames: int, fps: float, config: PreprocessConfig) -> bool:
    """True if a clip has more frames than `too_long_factor` times the span of one sample."""
    return num_frames > config.too_long_factor * (config.num_frames * fps / config.train_fps * config.speed_factor)


def _window(config: PreprocessConfig) -> int:
    return config.num_frames * config.frame_interval


def _closest(length: int, config: PreprocessConfig) -> int:
    return closest_length(length, config.min_num_frames, config.ae_stride_t, config.sp_size)

"""The prompt and the seed of these tests, and frames as a video file holds them."""

import numpy as np

PROMPT, SEED = "a red circle", 3


def as_uint8(frames: np.ndarray) -> np.ndarray:
    return (frames * 255).round().astype(np.uint8)

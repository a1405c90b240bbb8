"""Computes the size of a frame of h x w pixels after resizing and cropping, by pure functions of whole numbers.

The filter promises these sizes and the transforms produce them. `int` truncates and `round` rounds halves to even, as
in the original.
"""

import math

# height : width, with the rounded value that decides which ratio is nearest
_FIVE_RATIOS = (((9, 16), 0.56), ((3, 4), 0.75), ((1, 1), 1.0), ((4, 3), 1.33), ((16, 9), 1.78))


def nearest_ratio(height: int, width: int) -> tuple[int, int]:
    """The ratio among 9:16, 3:4, 1:1, 4:3, 16:9 (height : width) that is nearest to height / width."""
    return min(_FIVE_RATIOS, key=lambda item: abs(item[1] - height / width))[0]


def fit_pixels(height: int, width: int, max_hxw: int, five_ratios: bool, stride: int) -> tuple[int, int]:
    """Size of a frame after resizing to a budget of `max_hxw` pixels.

    Without `five_ratios` frames shrink to the budget and never grow. With it the frame covers the largest box of the
    nearest ratio whose sides are multiples of `stride`; it may grow, and `stride_crop` removes the excess.
    """
    if not five_ratios:
        if height * width <= max_hxw:
            return height, width
        scale = math.sqrt(max_hxw / (height * width))
        return int(height * scale), int(width * scale)
    high, wide = nearest_ratio(height, width)
    area = min(height * width, max_hxw)
    count = math.floor(math.sqrt(area / (high * wide * stride**2)))
    if count > 0:
        box_height, box_width = high * count * stride, wide * count * stride
    else:  # less than one stride fits: keep the ratio only
        count = math.sqrt(area / (high * wide))
        box_height, box_width = int(high * count), int(wide * count)
    if height / width > box_height / box_width:
        return int(box_width / width * height), box_width
    return box_height, int(box_height / height * width)


def stride_crop(height: int, width: int, stride: int, five_ratios: bool) -> tuple[int, int, int, int]:
    """Centre crop (top, left, height, width) whose sides are multiples of `stride`, optionally of one of five ratios."""
    box_height, box_width = height, width
    if five_ratios:
        high, wide = nearest_ratio(height, width)
        if height / width > high / wide:
            box_height = int(width * high / wide)
        else:
            box_width = int(height * wide / high)
    crop_height, crop_width = box_height // stride * stride, box_width // stride * stride
    top = (height - box_height) // 2 + (box_height - crop_height) // 2
    left = (width - box_width) // 2 + (box_width - crop_width) // 2
    return top, left, crop_height, crop_width


def center_crop_box(
    height: int, width: int, to_height: int, to_width: int, top_crop: bool = False
) -> tuple[int, int, int, int]:
    """Largest crop (top, left, height, width) with the aspect ratio of to_height x to_width; centred, or at the top."""
    ratio = to_height / to_width
    if height / width > ratio:
        crop_height, crop_width = int(width * ratio), width
    else:
        crop_height, crop_width = height, int(height / ratio)
    top = 0 if top_crop else round((height - crop_height) / 2)
    return top, round((width - crop_width) / 2), crop_height, crop_width


def fit_inside(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
    """Largest size with the frame's aspect ratio inside to_height x to_width."""
    if height / width > to_height / to_width:
        return to_height, int(to_height / height * width)
    return int(to_width / width * height), to_width

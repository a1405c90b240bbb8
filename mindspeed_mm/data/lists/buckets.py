"""Aspect buckets from the data: a few sample sizes, chosen so that the clips of a list lose little when cut to them.

Without buckets each clip keeps its own ratio, so that a small list falls into shapes of one clip each, which no batch
can use.
"""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence

Size = tuple[int, int]  # height, width in pixels


def choose_buckets(sizes: Iterable[Size], count: int, max_hxw: int, stride: int) -> tuple[Size, ...]:
    """At most `count` sizes of about equal area, for clips of these sizes; largest height / width first.

    The area is the clips' median, at most `max_hxw`; sides are multiples of `stride`. Every clip votes for the size
    nearest to its ratio. Then the size is given up whose clips lose least in the next one, until `count` are left. Equal
    lists give equal buckets, whatever their order.
    """
    votes = collections.Counter(sizes)
    if not votes:
        return ()
    areas = sorted(height * width for (height, width), number in votes.items() for _ in range(number))
    known = _sizes_of(min(max_hxw, areas[len(areas) // 2]), stride)
    members: dict[Size, list[tuple[float, int]]] = collections.defaultdict(list)
    for (height, width), number in sorted(votes.items()):
        members[nearest(height, width, known)].append((height / width, number))
    while len(members) > count:
        given_up = min(sorted(members), key=lambda size: _cost(size, members))
        ratios = members.pop(given_up)
        members[nearest(*given_up, sorted(members))] += ratios
    return tuple(sorted(members, key=lambda size: -size[0] / size[1]))


def nearest(height: int, width: int, sizes: Sequence[Size]) -> Size:
    """The size of which a clip loses least when it is cut to its ratio; the larger one of equals."""
    return min(sizes, key=lambda size: (_lost(height / width, size), -size[0] * size[1], size))


def _sizes_of(area: int, stride: int) -> list[Size]:
    """For each height the widest size within an area; at least one stride high and wide."""
    heights = range(stride, max(stride, area // stride) + 1, stride)
    sizes = [(height, area // height // stride * stride) for height in heights]
    # a narrow size may leave much of the area unused; sizes of less than 9/10 of it are left out where others exist
    full = [size for size in sizes if math.prod(size) >= 0.9 * area]
    return full or [size for size in sizes if size[1]] or [(stride, stride)]


def _lost(ratio: float, size: Size) -> float:
    """Share of a picture of this height / width that is cut away."""
    other = size[0] / size[1]
    return 1 - min(ratio / other, other / ratio)


def _cost(size: Size, members: Mapping[Size, list[tuple[float, int]]]) -> tuple[float, Size]:
    """What the clips of a size lose in the nearest other one, beyond what they lose now."""
    other = nearest(*size, sorted(one for one in members if one != size))
    return sum(number * (_lost(ratio, other) - _lost(ratio, size)) for ratio, number in members[size]), size

"""Chooses usable rows, their size and length: one predicate per rule, in the order of the original.

The first rule that fires drops the row. The report gives each rule's count and some paths, so that users see why a
list shrinks. A list without usable rows raises an error with the same report in one line.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from mindspeed_mm.config.data import PreprocessConfig
from mindspeed_mm.data.decode import frames, suffixes
from mindspeed_mm.data.decode.resolution import fit_pixels, stride_crop
from mindspeed_mm.data.lists.buckets import choose_buckets, nearest
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.errors import DataError

DEFAULT_FPS = 24.0  # for rows without a rate, as in the original
_EXAMPLES = 3
# At train_fps; 115 hours at 24. More is a mistake, and its frame numbers would fill the memory.
_MOST_FRAMES = 10_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """A usable row, with the shape of all its samples."""

    row: Row
    frames: int
    height: int
    width: int

    @property
    def key(self) -> str:
        """Clips with the same key can share a batch."""
        return f"{self.frames}x{self.height}x{self.width}"

    @property
    def fps(self) -> float:
        return _fps(self.row)

    @property
    def source_size(self) -> tuple[int, int]:
        """(height, width) of the row; the filter drops rows without."""
        return _size(self.row)

    @property
    def source_frames(self) -> int:
        """Length of the part of the file that a video's row means; the filter drops rows without."""
        return _known(self.row.num_frames)

    @property
    def identity(self) -> str:
        """Identity of the clip, whatever its place in the list: file, part of it, and shape."""
        row = self.row
        return f"{row.path}|{row.start}+{row.num_frames}@{self.fps:g}|{row.crop}|{self.key}"


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """Rows dropped by one rule: its name and the paths, each followed by a reason if there is one."""

    rule: str
    rows: Sequence[str]

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def examples(self) -> tuple[str, ...]:
        """The first few, for messages."""
        return tuple(self.rows[:_EXAMPLES])

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.rule} {self.count} ({', '.join(self.examples)}{more})"


@dataclasses.dataclass(frozen=True, slots=True)
class FilterResult:
    """Result of filtering.

    clips: usable rows in the order of the list. dropped: one entry per rule that fired, most rows first. usable: clips
    and those of rare shapes. Rare shapes depend on the batch size, so places in the list that must last from run to
    run index `usable`. total: rows of the list. shapes: number of `clips` of each shape. assumed: videos among them
    whose rate is assumed.
    """

    clips: Sequence[Clip]
    dropped: tuple[Dropped, ...]
    total: int
    usable: Sequence[Clip]
    shapes: Mapping[str, int]
    assumed: int

    def lines(self) -> list[str]:
        """The report, one sentence per line."""
        lines = [f"data: {len(self.clips)} of {self.total} rows are used"]
        lines += [f"data: dropped by rule {dropped}" for dropped in self.dropped]
        if any(dropped.rule == "unknown_type" for dropped in self.dropped):
            lines.append(f"data: unknown_type: {suffixes.accepted()}")
        if self.assumed:
            lines.append(f"data: {self.assumed} videos state no fps; {DEFAULT_FPS:g} is assumed")
        lines.append("data: clips by shape " + " ".join(f"{key}={count}" for key, count in self._most_common()))
        return lines

    def report(self) -> dict:
        """The report for a JSON file, with every dropped row."""
        return {
            "rows": self.total,
            "used": len(self.clips),
            "shapes": dict(self._most_common()),
            "dropped": {item.rule: {"count": item.count, "rows": list(item.rows)} for item in self.dropped},
        }

    def checked(self, config: PreprocessConfig, global_batch_size: int | None, source: str) -> "FilterResult":
        """The same, with the rule that dropped most in front. Raises DataError if no clip is left."""
        dropped = tuple(sorted(self.dropped, key=lambda one: -one.count))
        if not self.clips:
            raise DataError(_nothing_left(source, self.total, dropped, config, global_batch_size))
        return dataclasses.replace(self, dropped=dropped)

    def _most_common(self) -> list[tuple[str, int]]:
        return collections.Counter(self.shapes).most_common()


def _known(fact: int | None) -> int:
    assert fact is not None, "an earlier rule drops rows without it"
    return fact


def common_shapes(counts: Mapping[str, int], group_size: int) -> dict[str, int]:
    """Shapes with enough clips for steps of `group_size`, and their counts; rule rare_shape drops the others.

    A shape needs clips for four steps, as in the original. If no shape has as many, as in a small list, one step is
    enough.
    """
    enough = 4 * group_size if any(count >= 4 * group_size for count in counts.values()) else group_size
    return {key: count for key, count in counts.items() if count >= enough}


def filter_rows(
    rows: Iterable[Row], config: PreprocessConfig, global_batch_size: int | None, source: str = "the list"
) -> FilterResult:
    """Applies all rules. source: name of the list in the error about an empty result.

    Shapes with too few clips for global_batch_size are dropped (`common_shapes`); None keeps them.
    """
    dropped: dict[str, list[str]] = {}
    clips: list[Clip] = []
    total = 0
    for row, rule in judged(rows, config):
        total += 1
        if rule is None:
            clips.append(clip_of(row, config))
        else:
            dropped.setdefault(rule, []).append(reason_of(row, rule))
    usable = tuple(clips)
    shapes = collections.Counter(clip.key for clip in clips)
    if global_batch_size is not None:
        common = common_shapes(shapes, global_batch_size)
        if len(common) < len(shapes):
            dropped["rare_shape"] = [f"{clip.row.path} {clip.key}" for clip in clips if clip.key not in common]
            clips, shapes = [clip for clip in clips if clip.key in common], common
    report = tuple(Dropped(rule, tuple(paths)) for rule, paths in dropped.items())
    result = FilterResult(tuple(clips), report, total, usable, shapes, sum(map(assumes_rate, clips)))
    return result.checked(config, global_batch_size, source)


def judged(rows: Iterable[Row], config: PreprocessConfig) -> Iterator[tuple[Row, str | None]]:
    """Each row, with the size that `auto_buckets` gives it, and the rule that drops it or None."""
    draws = torch.Generator().manual_seed(config.seed)
    for row in with_buckets(rows, config):
        yield row, _first_rule(row, config, lambda: torch.rand(1, generator=draws).item())


def reason_of(row: Row, rule: str) -> str:
    """What a report says of a dropped row."""
    return row.path if row.fault is None or rule != "unreadable" else row.fault


def assumes_rate(clip: Clip) -> bool:
    """True for a video whose row states no frame rate."""
    return clip.row.fps is None and clip.row.kind == "video"


def with_buckets(rows: Iterable[Row], config: PreprocessConfig) -> Iterable[Row]:
    """The rows with the size that `auto_buckets` gives their samples; the same rows without it."""
    if not config.auto_buckets:
        return rows
    rows = list(rows)
    fit = [row for row in rows if not any(fires(row, config) for _, fires in _RULES_OF_THE_FILE)]
    sizes = [_size(row) for row in fit]
    buckets = choose_buckets(sizes, config.auto_buckets, _known(config.max_hxw), config.hw_stride)
    chosen = {size: nearest(*size, buckets) for size in set(sizes)}
    return [
        dataclasses.replace(row, bucket=chosen.get((row.height, row.width)))  # pyright: ignore[reportArgumentType]
        for row in rows
    ]


def _nothing_left(source, total, report, config: PreprocessConfig, global_batch_size) -> str:
    rules = "; ".join(str(dropped) for dropped in report) or "the list is empty"
    text = f"{source}: none of {total} rows can be used: {rules}."
    if any(dropped.rule == "rare_shape" for dropped in report):
        text += f" rare_shape asks for {global_batch_size} clips of one shape (--global-batch-size)."
    if any(dropped.rule == "unknown_type" for dropped in report):
        text += f" {suffixes.accepted()}.".replace(" videos", " Videos", 1)
    return text + (
        f" preprocess_parameters ask for {config.num_frames} frames at {config.train_fps:g} fps "
        f"and at least {config.least_pixels} pixels"
    )


# -------------------------------------------------------------------------------------------------------------- rules


def _first_rule(row: Row, config: PreprocessConfig, draw: Callable[[], float]) -> str | None:
    for name, fires in (*_ANY_RULES, *(_VIDEO_RULES if row.kind == "video" else ())):
        if fires(row, config):
            return name.format(kind="vid" if row.kind == "video" else "img")
    return "too_short" if row.kind == "video" and _too_short(row, config, draw) else None


def _unreadable(row: Row, config: PreprocessConfig) -> bool:
    return row.fault is not None


def _no_caption(row: Row, config: PreprocessConfig) -> bool:
    return not row.captions


def _unknown_type(row: Row, config: PreprocessConfig) -> bool:
    return row.kind == "unknown"


def _no_resolution(row: Row, config: PreprocessConfig) -> bool:
    return row.height is None or row.width is None or row.height <= 0 or row.width <= 0


def _aspect_mismatch(row: Row, config: PreprocessConfig) -> bool:
    height, width = _size(row)
    if config.hw_aspect_thr is not None and not config.force_resolution:
        height, width = _budget_size(row, config)
    least, greatest = config.aspect_limits
    return min(height, width) > 0 and not least <= height / width <= greatest


def _too_few_pixels(row: Row, config: PreprocessConfig) -> bool:
    height, width = _size(row)
    if height * width < config.least_pixels:
        return True
    if not config.force_resolution:
        return False
    # After the crop to the target's ratio, least_pixels must remain.
    target, ratio = config.max_height / config.max_width, height / width
    return height * width < math.ceil(config.least_pixels * max(ratio / target, target / ratio))


def _smaller_than_stride(row: Row, config: PreprocessConfig) -> bool:
    return not config.force_resolution and min(_budget_size(row, config)) <= 0


def _sample_too_small(row: Row, config: PreprocessConfig) -> bool:
    return not config.force_resolution and math.prod(_budget_size(row, config)) < config.least_pixels


def _sample_too_large(row: Row, config: PreprocessConfig) -> bool:
    if config.force_resolution or config.max_hxw is None:
        return False
    return math.prod(_budget_size(row, config)) > config.max_hxw


def _no_num_frames(row: Row, config: PreprocessConfig) -> bool:
    return row.num_frames is None or row.num_frames < 1


def _bad_fps(row: Row, config: PreprocessConfig) -> bool:
    return row.fps is not None and row.fps <= 0


def _too_long(row: Row, config: PreprocessConfig) -> bool:
    length = _known(row.num_frames)
    if length / frames.frame_step(_fps(row), config.train_fps) > _MOST_FRAMES:
        return True
    return not config.keeps_every_speed and frames.too_long(length, _fps(row), config)


def _fps_too_low(row: Row, config: PreprocessConfig) -> bool:
    return not config.keeps_every_speed and frames.frame_step(_fps(row), config.train_fps) < 1.0


def _too_short(row: Row, config: PreprocessConfig, draw: Callable[[], float]) -> bool:
    """Too short for `num_frames` (dropped with probability drop_short_ratio) or for any length that the VAE takes."""
    resampled, length = frames.selected_length(row.start, _known(row.num_frames), _fps(row), config)
    return (resampled < config.num_frames and draw() < config.drop_short_ratio) or length < 0


# In the original's order: the first rule that fires gives the reason. Names follow the original where it has one.
_RULES_OF_THE_FILE = (
    ("no_cap", _no_caption),
    ("unknown_type", _unknown_type),
    ("unreadable", _unreadable),
    ("no_resolution", _no_resolution),
    ("{kind}_aspect_mismatch", _aspect_mismatch),
    ("{kind}_res_too_small", _too_few_pixels),
)
_ANY_RULES = (
    *_RULES_OF_THE_FILE,
    ("{kind}_res_mismatch_stride", _smaller_than_stride),
    ("{kind}_res_too_small", _sample_too_small),
    ("{kind}_res_too_large", _sample_too_large),
)
_VIDEO_RULES = (
    ("no_num_frames", _no_num_frames),
    ("bad_fps", _bad_fps),
    ("too_long", _too_long),
    ("fps_too_low", _fps_too_low),
)


def sample_size(row: Row, config: PreprocessConfig) -> tuple[int, int]:
    """(height, width) of every sample of the row."""
    return config.fixed_size(row.kind) or _budget_size(row, config)


def _budget_size(row: Row, config: PreprocessConfig) -> tuple[int, int]:
    """Size after resizing to the pixel budget and cropping to multiples of the stride; or the row's bucket."""
    if row.bucket is not None:
        return row.bucket
    return _fitted(*_size(row), _known(config.max_hxw), config.force_5_ratio, config.hw_stride)


@functools.lru_cache(maxsize=4096)  # several rules and the clip ask for it, and most rows of a list share some sizes
def _fitted(height: int, width: int, max_hxw: int, five_ratios: bool, stride: int) -> tuple[int, int]:
    # The original omits hw_stride in the first step, so its keys and its transforms could disagree.
    return stride_crop(*fit_pixels(height, width, max_hxw, five_ratios, stride), stride, five_ratios)[2:]


def clip_of(row: Row, config: PreprocessConfig) -> Clip:
    """The clip of a row that no rule drops."""
    length = 1
    if row.kind == "video":
        length = frames.selected_length(row.start, _known(row.num_frames), _fps(row), config)[1]
    return Clip(row, length, *sample_size(row, config))


def _size(row: Row) -> tuple[int, int]:
    return _known(row.height), _known(row.width)


def _fps(row: Row) -> float:
    return DEFAULT_FPS if row.fps is None else row.fps

"""Rows: one clip or image of a list each, as its annotation describes it.

Facts missing in a file stay missing here; `data/lists/filters.py` decides whether a row is usable.
"""

import dataclasses

from mindspeed_mm.data.decode import suffixes

CAPTION_SUFFIXES = (".txt", ".caption", ".cap")  # suffixes of a caption file beside a clip, with the clip's stem


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One clip or image of a list, as its annotation describes it; None for facts that the annotation omits."""

    path: str
    captions: tuple[str, ...]  # one is drawn per access; may be empty
    height: int | None  # pixels, after `crop`
    width: int | None
    num_frames: int | None  # length of the clip, in frames of the file
    fps: float | None
    start: int  # first frame of the clip in the file
    crop: tuple[int, int, int, int] | None  # x0, x1, y0, y1 in pixels of the decoded frame
    aesthetic: float | None
    fault: str | None = None  # why the file could not be probed, if probing was requested
    seconds: tuple[float, float | None] | None = None  # start and end in the file, until its fps is known
    checksum: str | None = None  # SHA-256 of the file, 64 hexadecimal digits; `check_dataset --checksums` compares it
    trigger: str | None = None  # word put before captions; None: the run's, "": none
    bucket: tuple[int, int] | None = None  # (height, width) of its samples, by auto_buckets
    bare: bool = False  # no row of its source has enough facts, so they always come from the files

    @property
    def kind(self) -> str:
        """'video', 'image' or 'unknown'."""
        return suffixes.kind_of(self.path, self.num_frames)

    @property
    def lacks_facts(self) -> bool:
        """True if size, rate or length are missing, which the file itself can give (`data/lists/probe.py`)."""
        return self.unusable or (self.kind == "video" and self.fps is None)

    @property
    def unusable(self) -> bool:
        """True if a fact is missing that every rule needs: the size, or the length of a video."""
        kind, size = self.kind, self.height is None or self.width is None
        return (size and kind != "unknown") or (kind == "video" and self.num_frames is None)

    def timed(self, fps: float | None) -> "Row":
        """The row with a frame rate, which converts a part given in seconds to frames of the file."""
        if fps is None or fps <= 0 or self.seconds is None:
            return dataclasses.replace(self, fps=fps)
        begin, end = self.seconds
        start = round(begin * fps)
        num_frames = self.num_frames if end is None else max(0, round(end * fps) - start)
        return dataclasses.replace(self, fps=fps, start=start, num_frames=num_frames, seconds=None)

    @staticmethod
    def kind_of(path: str) -> str:
        """Kind by suffix, in any case."""
        return suffixes.kind_of(path)

"""Index of the frames of a file, for exact seeking; computed once and kept.

Display order is the order of time stamps, and packets state their own. So the frames of a file are counted by reading
its packets, without decoding. That still reads the file up to the wanted frame, so indexes are kept in memory, and in
a folder if one is given: clips cut from long videos need them in every epoch.
"""

import collections
import dataclasses
import hashlib
from pathlib import Path

import av.container
import numpy as np

from mindspeed_mm import atomic, logs
from mindspeed_mm.data.decode import media
from mindspeed_mm.data.decode.damage import listening, notice
from mindspeed_mm.files.checksum import crc32

_log = logs.get(__name__)

# Containers whose packets state when a frame is shown (those of .avi do not), and
_TIMED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
# codecs with one shown frame per packet (not VP8), so that frames can be counted without decoding.
_COUNTABLE = frozenset({"h264", "hevc", "vp9", "av1", "libdav1d", "mpeg4", "mpeg2video", "mjpeg", "prores"})
_REORDER = 32  # largest distance of a packet from its place in display order; H.264 and H.265 allow 16
_NUMBER = np.dtype("<i8")  # a stored index is the CRC-32 of what follows, the number of frames, stamps, keys, seeks
_KEPT_STAMPS = 4_000_000  # in memory: 32 MB, some 30,000 clips of 5 s or 23 hours of film


@dataclasses.dataclass(frozen=True, slots=True)
class FrameIndex:
    """Frame index of a file.

    stamps [n]: time stamps in display order, of which the first `sure` are final. keys, seeks [k]: time stamps of the
    key frames, ascending, and the time stamp to seek to for each.
    """

    stamps: np.ndarray
    keys: np.ndarray
    seeks: np.ndarray
    sure: int
    whole: bool

    @property
    def usable(self) -> bool:
        """False for files whose frames cannot be told apart by time stamps; these are decoded from the start."""
        return len(self.stamps) > 0

    def place(self, stamp: int) -> int | None:
        """Number of the frame with a time stamp, or None."""
        at = int(np.searchsorted(self.stamps, stamp))
        return at if at < len(self.stamps) and self.stamps[at] == stamp else None

    def key_before(self, frame: int) -> tuple[int, int]:
        """(time stamp, time stamp to seek to) of the last key frame at or before a frame, or of the first frame."""
        at = int(np.searchsorted(self.keys, self.stamps[frame], side="right")) - 1
        return (int(self.keys[at]), int(self.seeks[at])) if at >= 0 else (int(self.stamps[0]), int(self.stamps[0]))


_UNUSABLE = FrameIndex(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), 0, True)


class FrameIndexes:
    """Indexes of the most recently opened files, by path, size and date."""

    def __init__(self, folder: str | None = None, kept_stamps: int = _KEPT_STAMPS):
        self._folder = None if folder is None else Path(folder)
        self._attempt = logs.Attempts(_log, f"the index of frames in {folder}")
        self._limit = kept_stamps
        self._kept: collections.OrderedDict[tuple, FrameIndex] = collections.OrderedDict()

    def find(self, path: str, container: av.container.InputContainer, stream, last: int) -> FrameIndex:
        """Index of an open file, valid for frames up to `last`. Missing parts are read from the file's packets."""
        status = media.stat(path)
        key = (path, status.st_size, status.st_mtime_ns)
        index = self._kept.pop(key, None) or self._load(key)
        if index is None or not (index.whole or last < index.sure):
            # If the beginning did not suffice, read the whole file: a film is then read twice, not once for each of
            # its clips.
            index = build_index(container, stream, None if index else last + 1 + _REORDER)
            self._attempt(lambda: self._store(key, index))
        self._kept[key] = index
        while len(self._kept) > 1 and sum(len(item.stamps) + 8 for item in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)
        return index

    def _file(self, folder: Path, key: tuple) -> Path:
        name = hashlib.sha256("\n".join(map(str, key)).encode()).hexdigest()[:32]
        return folder / name[:2] / f"{name}.index"

    def _load(self, key: tuple) -> FrameIndex | None:
        if self._folder is None:
            return None
        try:
            found = np.fromfile(self._file(self._folder, key), _NUMBER)
        except OSError:
            return None
        checksum, table = found[:1], found[1:]
        if not len(table) or crc32(table) != checksum:  # damaged: it is built again
            return None
        frames = int(table[0])
        stamps, rest = table[1 : 1 + frames], table[1 + frames :]
        return FrameIndex(stamps, *rest.reshape(2, -1), sure=frames, whole=True)

    def _store(self, key: tuple, index: FrameIndex) -> None:
        if self._folder is None or not index.whole:
            return
        file = self._file(self._folder, key)
        file.parent.mkdir(parents=True, exist_ok=True)
        table = np.concatenate([[len(index.stamps)], index.stamps, index.keys, index.seeks]).astype(_NUMBER)
        with atomic.replacing(file) as target:
            target.write(np.array([crc32(table)], _NUMBER).tobytes() + table.tobytes())


def build_index(container: av.container.InputContainer, stream, limit: int | None) -> FrameIndex:
    """Reads the packets of an open file from its current position: the first `limit`, or all."""
    if container.format.name not in _TIMED or stream.codec_context.name not in _COUNTABLE:
        return _UNUSABLE
    stamps, keys, whole = [], {}, True
    packets = container.demux(stream)
    while True:
        with listening() as messages:
            packet = next(packets, None)
        if packet is None:
            break
        if notice(messages):  # packets may be missing, so counted frame numbers may be wrong
            return _UNUSABLE
        if packet.size == 0 or packet.is_discard:  # the flush packet; frames that an edit list hides
            continue
        if packet.pts is None or packet.is_corrupt:
            return _UNUSABLE
        stamps.append(packet.pts)
        if packet.is_keyframe:
            keys[packet.pts] = packet.pts if packet.dts is None else packet.dts  # mp4 seeks by dts
        if len(stamps) == limit:
            whole = False
            break
    if len(set(stamps)) != len(stamps):
        return _UNUSABLE
    ordered = np.sort(np.array(stamps, np.int64))
    key_stamps = np.array(sorted(keys), np.int64)
    seeks = np.array([keys[stamp] for stamp in key_stamps.tolist()], np.int64)
    return FrameIndex(ordered, key_stamps, seeks, len(stamps) if whole else max(0, len(stamps) - _REORDER), whole)

"""Decides which decoded frames to trust: none from a damaged frame up to the next undamaged key frame.

A decoder hides damage: it fills holes, predicts later frames from them, and at most flags the first of them. It
reports other damage in FFmpeg's log. So every packet is decoded with the log open, and damage is recorded for the
packet at which it was noticed. Frames are then judged in decoding order, not display order.
"""

import contextlib
import re
import threading
from collections.abc import Iterator

import av
import av.logging

# Log levels at which a decoder or demuxer reports damage, and words that report it at milder levels.
_SURE, _MAYBE = av.logging.ERROR, av.logging.INFO
_BAD_WORDS = re.compile(
    r"corrupt|damag|conceal|invalid|missing|truncat|mismatch|incomplete|illegal|partial|overread|error|broken|unexpected"
    r"|not found|out of range|unavailable|discard",
    re.IGNORECASE,
)
# Messages about undamaged files too: long encoder notes, a habit of DivX, JPEG without an end mark.
_HARMLESS = re.compile(r"^SEI type|packed B-frames|EOI missing|deprecated pixel format", re.IGNORECASE)

_lock = threading.Lock()
_open_ears = 0
_level_before: int | None = None
_skips_before = True


@contextlib.contextmanager
def listening() -> Iterator[list[tuple[int, str, str]]]:
    """Collects FFmpeg's messages (level, component, text) of this thread. Its process-wide log level is restored
    afterwards.
    """
    _raise_level()
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        _lower_level()


def notice(messages: list[tuple[int, str, str]]) -> str | None:
    """The first message that reports damage, or None."""
    for level, who, text in messages:
        if _HARMLESS.search(text):
            continue
        if level <= _SURE or (level <= _MAYBE and _BAD_WORDS.search(text)):
            return f"{who}: {' '.join(text.split())}"
    return None


def _raise_level() -> None:
    global _open_ears, _level_before, _skips_before
    with _lock:
        _open_ears += 1
        if _open_ears == 1:
            _level_before, _skips_before = av.logging.get_level(), av.logging.get_skip_repeated()
            av.logging.set_skip_repeated(False)  # repeated messages count too
            av.logging.set_level(max(_MAYBE, _level_before or _MAYBE))


def _lower_level() -> None:
    global _open_ears
    with _lock:
        _open_ears -= 1
        if _open_ears == 0:
            av.logging.set_level(_level_before)
            av.logging.set_skip_repeated(_skips_before)


class Damage:
    """Known damage of one reading. Packets are numbered in decoding order."""

    def __init__(self):
        self._notices: dict[int, str] = {}  # packet -> message
        self._restart = -1  # packet of the last undamaged key frame that was shown
        self._taken = -1  # packet of the latest trusted frame
        self._due: list[int] = []  # packets that give a picture, from the first key frame on
        self._shown: list[int] = []  # packets of the frames so far
        self._miscounted: str | None = None

    def sent(self, packet: int, *, key: bool) -> None:
        """Records that a packet with a picture goes to the decoder."""
        if key or self._due:
            self._due.append(packet)

    def found(self, packet: int, what: str) -> None:
        self._notices.setdefault(packet, what)

    def lose_count(self, what: str) -> None:
        """Records missing packets: later frames have other numbers than in the whole file."""
        self._miscounted = self._miscounted or what

    def fault(self, packet: int, *, key: bool, corrupt: bool, counted: bool) -> str | None:
        """Reason not to trust the next frame in display order, or None.

        key: an intra frame at which decoding can start. corrupt: the decoder flags it. counted: the frame's number
        comes from counting frames, not from its time stamp.
        """
        if corrupt:
            self.found(packet, "the decoder flags it as corrupt")
        elif key and packet not in self._notices:
            self._begin_again(packet)
        self._shown.append(packet)
        if self._miscounted and counted:
            return self._miscounted
        what = self._between(self._restart, packet)
        if what is None:
            self._taken = max(self._taken, packet)
        return what

    @property
    def late(self) -> str | None:
        """Damage that was noticed too late: its packet precedes one whose frame has already been trusted."""
        return self._between(self._restart, self._taken)

    def _between(self, after: int, last: int) -> str | None:
        return next((what for packet, what in self._notices.items() if after < packet <= last), None)

    def _begin_again(self, packet: int) -> None:
        """An undamaged key frame is shown. Frames decoded after it and shown after it depend on no older frame."""
        if self._notices and self._due:
            shown = sum(self._due[0] <= other < packet for other in self._shown)
            if shown != sum(other < packet for other in self._due):
                self.lose_count("frames are missing in front of it")
        self._notices = {at: what for at, what in self._notices.items() if at > packet}
        self._restart = packet

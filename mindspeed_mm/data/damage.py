"""Which decoded frames can be believed: none behind a damaged one up to the next key frame that is whole.

A decoder hides damage: it fills holes with something, predicts the next frames from that, and flags the first of them at
most. What it notices it says in FFmpeg's log. So every packet is decoded with the log open, and damage is remembered by
the packet at which it was noticed: frames are then judged in the order in which they were decoded, not shown.
"""

import contextlib
import re
import threading
from collections.abc import Iterator

import av

# Levels at which a decoder or a demuxer speaks of damage, and words that say so at the gentler ones.
_SURE, _MAYBE = av.logging.ERROR, av.logging.INFO
_BAD_WORDS = re.compile(
    r"corrupt|damag|conceal|invalid|missing|truncat|mismatch|incomplete|illegal|partial|overread|error|broken|unexpected"
    r"|not found|out of range|unavailable|discard",
    re.IGNORECASE,
)
# Said of whole files too: notes of an encoder that are too long, a habit of DivX, JPEG without an end mark.
_HARMLESS = re.compile(r"^SEI type|packed B-frames|EOI missing|deprecated pixel format", re.IGNORECASE)

_lock = threading.Lock()
_open_ears = 0
_level_before: int | None = None
_skips_before = True


@contextlib.contextmanager
def listening() -> Iterator[list[tuple[int, str, str]]]:
    """FFmpeg's messages (level, who, text) of this thread. The level of the log is process-wide and put back after."""
    _raise_level()
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        _lower_level()


def notice(messages: list[tuple[int, str, str]]) -> str | None:
    """The first message that speaks of damage, or None."""
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
            av.logging.set_skip_repeated(False)  # the second damage of a kind counts as well
            av.logging.set_level(max(_MAYBE, _level_before or _MAYBE))


def _lower_level() -> None:
    global _open_ears
    with _lock:
        _open_ears -= 1
        if _open_ears == 0:
            av.logging.set_level(_level_before)
            av.logging.set_skip_repeated(_skips_before)


class Damage:
    """What is known about the damage of one reading. Packets are numbered in the order in which they are decoded."""

    def __init__(self):
        self._notices: dict[int, str] = {}  # packet -> what was said
        self._restart = -1  # packet of the last whole key frame that was shown
        self._taken = -1  # packet of the latest frame that was believed
        self._due: list[int] = []  # packets that give a picture, from the first key frame on
        self._shown: list[int] = []  # packets of the frames so far
        self._miscounted: str | None = None

    def sent(self, packet: int, *, key: bool) -> None:
        """A packet that should give a picture goes to the decoder."""
        if key or self._due:
            self._due.append(packet)

    def found(self, packet: int, what: str) -> None:
        self._notices.setdefault(packet, what)

    def lose_count(self, what: str) -> None:
        """Packets are missing: later frames have other numbers than in the whole file."""
        self._miscounted = self._miscounted or what

    def fault(self, packet: int, *, key: bool, corrupt: bool, counted: bool) -> str | None:
        """Why a frame, the next in display order, is not to be believed; None if it is.

        key: an intra frame that decoding can start at; corrupt: flagged by the decoder; counted: the frame's number
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
        """Damage of a packet in front of one whose frame has been believed already: it was noticed too late."""
        return self._between(self._restart, self._taken)

    def _between(self, after: int, last: int) -> str | None:
        return next((what for packet, what in self._notices.items() if after < packet <= last), None)

    def _begin_again(self, packet: int) -> None:
        """A whole key frame is shown. What is decoded from here on, and shown behind it, needs nothing that is older."""
        if self._notices and self._due:
            shown = sum(self._due[0] <= other < packet for other in self._shown)
            if shown != sum(other < packet for other in self._due):
                self.lose_count("frames are missing in front of it")
        self._notices = {at: what for at, what in self._notices.items() if at > packet}
        self._restart = packet

"""A picture of the sample at work, made only while somebody looks, for at most a tenth of the time."""

import threading
import time
from collections.abc import Callable

from mindspeed_mm.serving.maker import Preview

_SHARE = 0.1  # of the time that steps take


class Previews:
    """The picture of the current job; thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self.begin(None)

    def begin(self, id: str | None) -> None:
        """Another job is the current one; None: no job is."""
        with self._lock:
            self._id = id
            self._picture: bytes | None = None
            self._is_wanted = False
            self._ready_s = self._clock()  # no picture is made before

    def look(self, id: str) -> bytes | None:
        """JPEG of a job's first frame as it looks by now; None if there is none yet. Asks for a newer one."""
        with self._lock:
            if id != self._id:
                return None
            self._is_wanted = True
            return self._picture

    def offer(self, make: Preview) -> None:
        """Makes a picture if somebody looks, and if the last one is long enough ago."""
        began = self._clock()
        with self._lock:
            if not self._is_wanted or began < self._ready_s:
                return
            self._is_wanted = False
        picture = make()
        ended = self._clock()
        with self._lock:
            self._picture = picture if picture is not None else self._picture
            self._ready_s = ended + (ended - began) / _SHARE

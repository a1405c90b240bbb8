"""Rules of the step cache: when a sampling step reuses the residuals of the denoiser's inner blocks."""

import dataclasses
import re

from mindspeed_mm.errors import ConfigError

_TEXT = re.compile(r"(?:(?P<every>\d{1,6})|auto:(?P<limit>\d{1,3}(?:\.\d{1,9})?))(?P<forecast>\+taylor)?")
HELP = "N, auto:LIMIT, N+taylor or auto:LIMIT+taylor"


@dataclasses.dataclass(frozen=True, slots=True)
class CacheRule:
    """every: the inner blocks run at every N-th step; 1 at all. limit: instead, they run when the first stage's residual
    has changed by more than this share since they last ran. forecast: reused residuals go on as a line (TaylorSeer), and
    the limit is for the error of that line for the first stage.
    """

    every: int = 1
    limit: float | None = None
    forecast: bool = False

    @property
    def is_on(self) -> bool:
        return self.every > 1 or self.limit is not None

    @classmethod
    def read(cls, text: str | int) -> "CacheRule":
        """Parses the value of --step-cache. Raises ConfigError."""
        match = _TEXT.fullmatch(str(text))
        every, limit = (match["every"], match["limit"]) if match else ("0", None)
        if match is None or (limit is None and int(every) < 1) or (limit is not None and float(limit) == 0):
            raise ConfigError(f"--step-cache {text}: must be {HELP}, such as 2 or auto:0.05")
        forecast = match["forecast"] is not None
        return cls(int(every), None, forecast) if limit is None else cls(1, float(limit), forecast)

    def reuses(self, number: int, total: int) -> bool | None:
        """True if step `number` (from 0) of `total` reuses an earlier step's residuals; None if the network decides.

        The last step runs whole. At every N-th step: so does the first fifth of them, which fixes the layout of the
        video. The number alone decides, so that every rank of every layout decides alike.
        """
        if number == total - 1 or not self.is_on:
            return False
        if self.limit is not None:
            return None
        first = -(-total // 5)
        return first <= number and (number - first + 1) % self.every != 0

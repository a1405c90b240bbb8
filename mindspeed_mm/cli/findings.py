"""What `mindspeed-mm doctor` says: one line for each thing that it looked at."""

import dataclasses

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One line: "ok", "warning" or "error", what it is about, what was found, and what to do about it."""

    state: str
    subject: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"{self.state:8} {self.subject:14} {self.found}"
        return f"{line}; {self.advice}" if self.advice else line

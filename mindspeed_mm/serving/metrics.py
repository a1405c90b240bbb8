"""Figures of a server in the text format of Prometheus."""

import os
import threading
from collections.abc import Iterable, Mapping

_QUICK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_LONG_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PREFIX = "mindspeed_mm"
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and histograms; thread-safe. Labels are few and fixed, never a video's or a key's name."""

    def __init__(self):
        self._lock = threading.Lock()
        self._requests: dict[Labels, int] = {}
        self._jobs: dict[Labels, _Histogram] = {}
        self._operations: dict[Labels, _Histogram] = {}

    def request(self, method: str, route: str, status: int) -> None:
        labels = (("method", method), ("route", route), ("status", str(status)))
        with self._lock:
            self._requests[labels] = self._requests.get(labels, 0) + 1

    def job(self, outcome: str, seconds: float) -> None:
        with self._lock:
            self._jobs.setdefault((("outcome", outcome),), _Histogram(_LONG_S)).add(seconds)

    def operation(self, name: str, seconds: float) -> None:
        """An operation of the queue."""
        with self._lock:
            self._operations.setdefault((("operation", name),), _Histogram(_QUICK_S)).add(seconds)

    def text(self, jobs: Mapping[str, int], up: bool) -> str:
        """jobs: number per status. up: whether the server makes samples."""
        with self._lock:
            lines = [
                *_one(
                    "jobs", "gauge", "jobs per status", [((("status", name),), count) for name, count in jobs.items()]
                ),
                *_one("up", "gauge", "1 while samples are made and the disk can be written", [((), int(up))]),
                *_one("resident_bytes", "gauge", "memory of the server's process", [((), _resident_bytes())]),
                *_one("requests_total", "counter", "answered requests", self._requests.items()),
                *_histograms("job_seconds", "seconds from the start to the end of a job", self._jobs),
                *_histograms("queue_seconds", "seconds of an operation of the queue", self._operations),
            ]
        return "\n".join(lines) + "\n"


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[sum(value > bound for bound in self.bounds)] += 1
        self.sum += value


def _one(name: str, kind: str, help: str, values: Iterable[tuple[Labels, int]]) -> list[str]:
    head = [f"# HELP {_PREFIX}_{name} {help}", f"# TYPE {_PREFIX}_{name} {kind}"]
    return head + [f"{_PREFIX}_{name}{_text(labels)} {value}" for labels, value in values]


def _histograms(name: str, help: str, values: Mapping[Labels, _Histogram]) -> list[str]:
    lines = [f"# HELP {_PREFIX}_{name} {help}", f"# TYPE {_PREFIX}_{name} histogram"]
    for labels, one in values.items():
        total = 0
        for bound, count in zip((*one.bounds, "+Inf"), one.counts, strict=True):
            total += count
            lines.append(f"{_PREFIX}_{name}_bucket{_text((*labels, ('le', str(bound))))} {total}")
        lines += [
            f"{_PREFIX}_{name}_sum{_text(labels)} {one.sum:.6f}",
            f"{_PREFIX}_{name}_count{_text(labels)} {total}",
        ]
    return lines


def _text(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = [(name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels]
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:  # not Linux
        return 0

"""The ledger's counts: samples that are not shown as they are stored, and those of several processes."""

import json

from ranks import run_ranks

from mindspeed_mm.data.feed.ledger import Ledger, Substitution
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.hosts import Hosts


def test_special_traits_are_counted_logged_and_kept(tmp_path, caplog):
    caplog.set_level("INFO")
    ledger = Ledger(tmp_path / "bad.json")
    for number in range(12):
        ledger.note([], 1, [("interlaced", f"{number}.mp4")])
    ledger.note([], 1, [("pixels of 2:1", "a.mp4")])
    ledger.sync()
    said = [line for line in caplog.messages if "samples so far" in line]
    assert [line.split(" samples")[0] for line in said] == ["data: 1", "data: 10", "data: 1"]
    assert "interlaced; one field is kept, the lines of the other are made from it (0.mp4)" in said[0]
    report = json.loads((tmp_path / "bad.json").read_text())["special"]
    assert report["pixels of 2:1; shown with square pixels"] == {"count": 1, "examples": ["a.mp4"]}
    again = Ledger()
    again.load_state_dict(ledger.state_dict())
    assert again.special == ledger.special and again.special["interlaced"].count == 12
    again.load_state_dict({"good": 3, "bad_samples": {}})  # of the first checkpoints
    assert again.special == {}


class _Everyone:
    """Counts the exchanges of objects."""

    def __init__(self, hosts: Hosts):
        self.total, self.gathered, self._hosts = hosts.total, 0, hosts

    def gather(self, value) -> list:
        self.gathered += 1
        return self._hosts.gather(value)


def _synced():
    parallel = ParallelContext.start()
    everyone = _Everyone(Hosts(parallel))
    ledger, seen = Ledger(everyone=everyone), []
    for step in range(3):
        bad = [Substitution(f"{parallel.rank}.mp4", "torn")] if step == 1 and parallel.rank else []
        ledger.note(bad, 2 + parallel.rank, [("interlaced", "a.mp4")] if bad else [])
        ledger.sync()
        seen.append((ledger.tries, everyone.gathered))
    return seen, ledger.state_dict()


def test_several_processes_add_up_and_exchange_objects_only_when_one_has_something_to_tell():
    first, second = run_ranks(_synced, 2)
    assert first == second
    seen, state = first
    assert seen == [(5, 0), (11, 1), (16, 1)]  # tries: good samples of both, and the one that failed
    assert state == {"good": 15, "bad_samples": {"1.mp4": ("torn", 1)}, "special": {"interlaced": (1, ["a.mp4"])}}

"""Ranks wait for each other as long as one of them makes progress, and no longer; nothing that waits stops the signs."""

import collections
import contextlib
import datetime
import threading
import time

import torch.distributed as dist
from ranks import run_ranks

from mindspeed_mm.checkpoint.store import CheckpointStore, Writing
from mindspeed_mm.errors import MMError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.meeting import meet, ranks_of
from mindspeed_mm.parallel.pulse import Pulse
from mindspeed_mm.training import heartbeat
from mindspeed_mm.training.heartbeat import Heartbeat
from mindspeed_mm.training.watchdog import Watchdog


@contextlib.contextmanager
def impatient_collectives(seconds: float):
    """Every collective of the pool's own group may take this long."""

    def limit(seconds: float) -> None:
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), dist.group.WORLD)

    limit(seconds)
    try:
        yield
    finally:
        limit(1800)


def save_slowly(root, tells: bool) -> str:
    """Rank 1 writes for 5 s; a collective may take 2 s, and so may a rank do without any sign of progress."""
    parallel = ParallelContext.start()
    parallel.pulse.patience_s = 2.0

    def write() -> dict:
        for _ in range(10 if parallel.rank == 1 else 0):
            time.sleep(0.5)
            if tells:
                parallel.pulse.beat("a part of a file")
        return {f"{parallel.rank}.pt": [0, 0]}

    with impatient_collectives(2.0):
        try:
            CheckpointStore(root, parallel).save(10, lambda building: Writing(write))
        except MMError as error:
            return str(error)
    return "saved"


def test_a_disk_that_is_slow_ends_nothing(tmp_path):
    assert run_ranks(save_slowly, 2, tmp_path, True) == ["saved", "saved"]
    assert (tmp_path / "iter_0000010" / "checksums.json").is_file()


def test_a_disk_that_hangs_is_found(tmp_path):
    first, second = run_ranks(save_slowly, 2, tmp_path, False)
    assert "saving: rank 1 is not ready, and no rank has made progress for 2 s" in first
    assert "saving: rank 0 is not ready" in second  # it has given up


def values() -> tuple:
    parallel = ParallelContext.start()
    everyone = [meet("a test", parallel, {"rank": parallel.rank}, lambda found: found) for _ in range(2)]
    return everyone[1], parallel.store.check(["meet/a test/1"])


def test_what_the_first_rank_decides_is_known_to_all_and_leaves_no_key():
    assert run_ranks(values, 2) == [([{"rank": 0}, {"rank": 1}], False)] * 2


def test_ranks_are_named_in_spans():
    assert ranks_of([3]) == "rank 3 is"
    assert ranks_of([0, 1, 2, 7, 9, 10]) == "ranks 0-2, 7, 9-10 are"


def test_signs_go_on_while_torch_waits_in_its_client():
    """As it does for a rank's address when it sets up a communicator. Through one client they stopped for as long."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", store.port, is_master=False)
    client.set_timeout(datetime.timedelta(seconds=3))
    pulse = Pulse(client, 0, 1)
    pulse.beat("the start", 0)

    def wait() -> None:
        with contextlib.suppress(RuntimeError):
            client.get("never")

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.2)
    started = time.monotonic()
    pulse.beat("the step", 1)
    assert time.monotonic() - started < 1.0 and waiting.is_alive()
    waiting.join()


def test_the_watchdog_waits_for_the_work_of_another_rank():
    store = dist.HashStore()
    mine, other = Pulse(store, 0, 2), Pulse(store, 1, 2)
    with Watchdog(mine, minutes=1 / 60):
        for _ in range(5):
            time.sleep(0.6)
            other.beat("a denoising step")  # rank 0 waits in a collective meanwhile, and says nothing
        assert mine.idle_s() < 1.0 < time.monotonic() - mine._mine


class Counting:
    """A store that counts what it is asked."""

    def __init__(self, store: dist.Store):
        self.store, self.calls = store, collections.Counter()

    def clone(self):
        return self

    def __getattr__(self, name: str):
        self.calls[name] += 1
        return getattr(self.store, name)


def test_a_failure_of_all_ranks_asks_the_store_a_few_times_a_rank(monkeypatch):
    """Each looked at every other one: 4 x ranks^2 questions, a million at 512 ranks."""
    monkeypatch.setattr(heartbeat, "_LOOK_S", 1.0)
    ranks, counting = 32, Counting(dist.HashStore())
    beating = [Heartbeat(Pulse(counting, rank, ranks)) for rank in range(ranks)]
    found: list = [None] * ranks

    def ask(rank: int) -> None:
        found[rank] = beating[rank]._lost()

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(ranks)]
    counting.calls.clear()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(ranks))] * ranks  # none of them has given a sign
    assert sum(counting.calls.values()) < 20 * ranks

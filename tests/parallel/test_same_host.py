"""Exchanges through memory give what gloo gives, and a rank that is gone, late or elsewhere is noticed."""

import datetime
import functools
import socket
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from mindspeed_mm.parallel import same_host
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.same_host import SameHostGroup, through_memory

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from collectives import CollectiveCounter

PATIENCE = datetime.timedelta(seconds=60)
ROOM, SIZES = 2**10, (1, 7, 256, 1003)  # numbers of a share: 256 of fp32 fill the room of a turn


def in_memory(timeout: datetime.timedelta = PATIENCE, spins: bool = True) -> SameHostGroup:
    group = through_memory(dist.group.WORLD, timeout, spins)
    assert isinstance(group, SameHostGroup)
    return group


def exchanges(group, numbers: int, dtype: torch.dtype, async_op: bool) -> list[torch.Tensor]:
    """Results of all exchanges of numbers that differ from rank to rank."""
    ranks = group.size()
    generator = torch.Generator().manual_seed(group.rank())
    share, whole = (torch.randn(n, generator=generator).mul(100).to(dtype) for n in (numbers, numbers * ranks))
    gathered, reduced, swapped, part = whole.clone(), whole.clone(), whole.clone(), share.clone()
    works = [
        dist.all_gather_into_tensor(gathered, share, group=group, async_op=async_op),
        dist.reduce_scatter_tensor(part, whole.clone(), group=group, async_op=async_op),
        dist.all_reduce(reduced, group=group, async_op=async_op),
        dist.all_to_all_single(swapped, whole, group=group, async_op=async_op),
    ]
    buffer = whole.clone()
    mine = buffer[numbers * group.rank() :][:numbers]  # results in their inputs' memory, as Megatron has them
    with dist._coalescing_manager(group, async_ops=async_op) as coalesced:
        dist.reduce_scatter_tensor(mine, buffer, group=group, async_op=async_op)
    if async_op:
        [work.wait() for work in (*works, coalesced)]
    with dist._coalescing_manager(group):
        dist.all_gather_into_tensor(buffer, mine, group=group)
    return [gathered, part, reduced, swapped, buffer]


def compared(dtype: torch.dtype, async_op: bool, spins: bool) -> dict[int, tuple[float, int]]:
    """By numbers of a share: the largest difference from gloo, and how many collectives gloo still had."""
    found = {}
    for numbers in SIZES:
        wanted = exchanges(dist.group.WORLD, numbers, dtype, async_op)
        with mock.patch.object(same_host, "_ROOM", ROOM):
            group = in_memory(spins=spins)
            with CollectiveCounter({"all": dist.group.WORLD}) as counter:
                results = exchanges(group, numbers, dtype, async_op)
        pairs = zip(results, wanted, strict=True)
        worst = max((one.double() - other.double()).abs().max().item() for one, other in pairs)
        found[numbers] = worst, sum(counter.seen.values())
    return found


@pytest.mark.parametrize(
    ("ranks", "dtype", "async_op", "spins", "most"),
    [
        (2, torch.float32, False, True, 0),
        (2, torch.bfloat16, True, False, 0),
        (4, torch.int64, True, False, 0),
        (4, torch.float32, False, False, 2e-4),  # sums in another order; numbers up to 800
    ],
)
def test_equals_gloo(ranks, dtype, async_op, spins, most):
    for found in run_ranks(compared, ranks, dtype, async_op, spins):
        for worst, left in found.values():
            assert worst <= most
            assert left == 0


def other_uses() -> list:
    """What gloo does itself, asked of a group in memory."""
    group = in_memory()
    objects: list = [None, None]
    dist.all_gather_object(objects, {"rank": dist.get_rank(group)}, group=group)
    most = torch.tensor(float(group.rank()))
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=group)
    empty = torch.zeros(0)
    dist.all_reduce(empty, group=group)
    first = torch.tensor(group.rank())
    dist.broadcast(first, group=group, group_src=1)
    dist.barrier(group=group)
    assert group == dist.group.WORLD and group.group_name == dist.group.WORLD.group_name
    return [objects, most.item(), first.item(), dist.get_process_group_ranks(group)]


def test_the_rest_is_for_gloo():
    for result in run_ranks(other_uses, 2):
        assert result == [[{"rank": 0}, {"rank": 1}], 1.0, 1, [0, 1]]


def words(call) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def summed(group: SameHostGroup, numbers: int = 3) -> None:
    dist.all_reduce(torch.ones(numbers), group=group)


def with_one_gone(when: str) -> tuple[str, float]:
    group = in_memory()
    if group.rank() == 1:
        if when == "while the other waits":
            group._heard(group._files[0], time.perf_counter())
        same_host._close(group._peers)
        return "", 0.0
    begin = time.monotonic()
    return words(functools.partial(summed, group)), time.monotonic() - begin


@pytest.mark.parametrize("when", ["before", "while the other waits"])
def test_a_rank_that_is_gone_is_noticed_at_once(when):
    (said, seconds), _ = run_ranks(with_one_gone, 2, when)
    assert "connection closed by peer" in said
    assert seconds < 5


def with_one_late() -> str:
    group = in_memory(datetime.timedelta(seconds=0.2))
    said = "" if group.rank() == 1 else words(functools.partial(summed, group))
    dist.barrier()
    return said


def test_a_rank_that_is_late_is_named_as_such():
    assert "has not come within 0:00:00.2" in run_ranks(with_one_late, 2)[0]


def with_other_sizes() -> str:
    group = in_memory()
    return words(lambda: summed(group, 3 + group.rank()))


def test_ranks_that_do_different_things_are_told_so():
    first, second = run_ranks(with_other_sizes, 2)
    assert first.startswith("this rank is in: all-reduce of 12 bytes, another in: all-reduce of 16 bytes")
    assert second.startswith("this rank is in: all-reduce of 16 bytes, another in: all-reduce of 12 bytes")


def apart(how: str, folder: str) -> tuple[bool, float]:
    """Whether gloo remains, and what it then sums, if ranks cannot meet."""
    name = socket.gethostname()
    patches = {
        "hosts": mock.patch.object(socket, "gethostname", lambda: f"{name}-{dist.get_rank()}"),
        "containers": mock.patch.object(same_host, "_connected", lambda *_: None),
        "path": mock.patch.object(tempfile, "tempdir", folder),
        "many": mock.patch.object(same_host, "_MOST_RANKS", 1),
        "files": mock.patch.object(socket, "socketpair", mock.Mock(side_effect=OSError("too many open files"))),
    }
    with patches[how]:
        group = through_memory(dist.group.WORLD, PATIENCE, True)
    total = torch.ones(())
    dist.all_reduce(total, group=group)
    return group is dist.group.WORLD, total.item()


@pytest.mark.parametrize("how", ["hosts", "containers", "path", "many", "files"])
def test_ranks_that_cannot_share_memory_keep_gloo(tmp_path, how):
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    assert run_ranks(apart, 2, how, str(folder)) == [(True, 2.0)] * 2


def kinds_of_groups(share_memory: bool) -> list[bool]:
    parallel = ParallelContext.start(tensor_size=2, context_size=2, share_memory=share_memory)
    groups = (parallel.tensor, parallel.context, parallel.data_and_context, parallel.data)
    return [isinstance(group, SameHostGroup) for group in groups]


def test_a_context_shares_memory_where_it_is_asked_to():
    assert run_ranks(kinds_of_groups, 4, True) == [[True, True, True, False]] * 4
    assert run_ranks(kinds_of_groups, 4, False) == [[False] * 4] * 4


def left_in(folder: str) -> list[str]:
    with mock.patch.object(tempfile, "tempdir", folder):
        in_memory()
    dist.barrier()
    return [path.name for path in Path(folder).iterdir()]


def test_no_file_is_left():
    with tempfile.TemporaryDirectory(prefix="mm") as folder:
        assert run_ranks(left_in, 2, folder) == [[], []]

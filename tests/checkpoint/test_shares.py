"""Every rank writes an equal part of a checkpoint, and the parts together are every tensor once, whatever the layout."""

import collections
import itertools
import math
import random
from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks

from mindspeed_mm.checkpoint import torch_dist
from mindspeed_mm.checkpoint.shares import Shares
from mindspeed_mm.checkpoint.store import CheckpointStore
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files.pieces import Pieces, boxes, check_cover
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.engine import MainShard

# TP-local shapes and the dimension that is split
NETWORK = {
    "patch": ((16, 4, 1, 2, 2), None),
    "column": ((24, 16), 0),
    "row": ((16, 24), 1),
    "bias": ((24,), 0),
    "norm": ((16,), None),
    "scale": ((), None),
}
DIMS = {name: dim for name, (_, dim) in NETWORK.items()}


def seat(tensor_rank: int, tensor_size: int, data_rank: int, data_size: int):
    """A rank's place, as `Shares` asks for it."""

    def group(rank, size):
        return SimpleNamespace(rank=lambda: rank, size=lambda: size)

    return SimpleNamespace(
        data_and_context=group(data_rank, data_size),
        tensor=group(tensor_rank, tensor_size),
        tensor_rank=tensor_rank,
        tensor_size=tensor_size,
    )


def local_values(device: str = "cpu") -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape, device=device) for name, (shape, _) in NETWORK.items()}


def shards_of(data_rank: int, data_size: int) -> list[MainShard]:
    """A data rank's shards, as a distributed optimizer cuts them: equal parts of all parameters in a row."""
    total = sum(math.prod(shape) for shape, _ in NETWORK.values())
    first, last = total * data_rank // data_size, total * (data_rank + 1) // data_size
    found, at = [], 0
    for name, (shape, _) in NETWORK.items():
        size = math.prod(shape)
        begin, end = max(first - at, 0), min(last - at, size)
        if begin < end:
            found.append(MainShard(name, torch.zeros(end - begin), begin, end, torch.Size(shape)))
        at += size
    return found


def parts_of(kind: str, tensor_rank: int, tensor_size: int, data_rank: int, data_size: int) -> list:
    shares = Shares(DIMS, seat(tensor_rank, tensor_size, data_rank, data_size))
    if kind == "parameters":
        return shares.of_parameters("model", local_values())
    mains = shards_of(data_rank, data_size) if kind == "own shards" else shards_of(0, 1)
    return shares.of_shards("param", mains, [one.main for one in mains], same=kind == "same shards")


@pytest.mark.parametrize("kind", ["parameters", "own shards", "same shards"])
@pytest.mark.parametrize(("tensor_size", "data_size"), [(1, 1), (2, 3), (4, 8)])
def test_all_ranks_write_every_tensor_once_and_as_much_as_each_other(kind, tensor_size, data_size):
    parts, written = collections.defaultdict(list), []
    for tensor_rank, data_rank in itertools.product(range(tensor_size), range(data_size)):
        mine = parts_of(kind, tensor_rank, tensor_size, data_rank, data_size)
        written.append(sum(part.tensor.nbytes for part in mine))
        for part in mine:
            parts[part.name, part.shape].append((part.offsets, tuple(part.tensor.shape)))
    assert len(parts) == len(NETWORK)
    for (name, shape), found in parts.items():
        check_cover("all ranks", name, shape, found)
    share = sum(math.prod(shape) for shape, _ in NETWORK.values()) / data_size
    assert max(written) <= 4 * (share + 2 * len(NETWORK))  # no more than a shard, but for the rounding of the cuts
    if kind != "own shards":
        assert max(written) - min(written) <= 4 * 4


@pytest.mark.parametrize("kind", ["parameters", "own shards", "same shards"])
def test_a_rank_of_512_writes_a_64th_of_what_a_rank_of_8_writes(kind):
    def most(data_size: int, ranks) -> int:
        return max(
            sum(part.tensor.nbytes for part in parts_of(kind, 3, 8, data_rank, data_size)) for data_rank in ranks
        )

    assert most(64, (0, 7, 31, 63)) <= most(1, (0,)) / 64 + 4 * 4 * len(NETWORK)


def test_a_range_is_few_boxes_that_are_contiguous_and_in_order():
    chance = random.Random(0)
    for _ in range(300):
        shape = tuple(chance.randint(1, 5) for _ in range(chance.randint(0, 5)))
        start, stop = sorted(chance.randint(0, math.prod(shape)) for _ in range(2))
        found = list(boxes(shape, start, stop))
        assert len(found) <= max(1, 2 * len(shape) - 1)
        numbers, values = torch.arange(math.prod(shape)).view(shape), []
        for box in found:
            part = numbers[tuple(slice(at, at + size) for at, size in zip(box.offsets, box.sizes, strict=True))]
            values += part.reshape(-1).tolist()
            assert part.reshape(-1)[0] == box.start
        assert values == list(range(start, stop))


def test_any_rows_of_any_rectangle_are_read_from_parts():
    whole, parts = torch.arange(7 * 6.0).view(7, 6), []
    for start, stop in ((0, 10), (10, 33), (33, 42)):
        for box in boxes(whole.shape, start, stop):
            place = tuple(slice(at, at + size) for at, size in zip(box.offsets, box.sizes, strict=True))
            parts.append((box.offsets, whole[place]))
    pieces = Pieces(whole.shape, whole.dtype, parts)
    assert torch.equal(pieces.rows(slice(0, 7)), whole)
    assert torch.equal(pieces.narrow(1, 2, 3).rows(slice(1, 6)), whole[1:6, 2:5])
    assert torch.equal(pieces.narrow(0, 3, 4).narrow(1, 4, 2).rows(slice(1, 3)), whole[4:6, 4:6])


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([((0, 0), (2, 3)), ((2, 0), (1, 3))], "overlap, or leave a hole"),  # a row is missing
        ([((0, 0), (2, 3)), ((1, 0), (2, 3))], "overlap, or leave a hole"),  # as many elements as the whole
        ([((0, 0), (3, 3)), ((3, 0), (2, 3))], "reaches beyond it"),
        ([((0,), (12,))], "other dimensions"),
    ],
)
def test_parts_that_are_not_the_whole_are_refused(parts, reason):
    with pytest.raises(CheckpointError, match=reason):
        check_cover("a folder", "weight", (4, 3), parts)


def save(folder, in_background: bool) -> tuple[int, int]:
    """Writes a network on TP 2 x DP 2; this rank's bytes of tensors, and the size of its file."""
    parallel = ParallelContext.start(tensor_size=2)
    values = {}
    for name, (shape, dim) in NETWORK.items():
        first = 0 if dim is None else 1000 * parallel.tensor_rank
        values[name] = torch.arange(math.prod(shape), dtype=torch.float32).view(shape) + first
    parts = Shares(DIMS, parallel).of_parameters("model", values)
    store = CheckpointStore(folder, parallel, in_background=in_background)
    store.save(1, lambda directory: torch_dist.prepare(parts, {"iteration": 1}, directory, parallel))
    store.complete()
    path = folder / "iter_0000001" / f"__{parallel.rank}_0.distcp"
    return sum(part.tensor.nbytes for part in parts), path.stat().st_size


@pytest.mark.parametrize("in_background", [False, True])
def test_each_rank_writes_its_part_alone_and_torch_reads_the_whole(tmp_path, in_background):
    import torch.distributed.checkpoint as dcp

    written = run_ranks(save, 4, tmp_path, in_background)
    total = sum(4 * math.prod(shape) * (1 if dim is None else 2) for shape, dim in NETWORK.values())  # each number once
    assert sum(tensors for tensors, _ in written) == total
    assert all(tensors <= total / 4 + 16 for tensors, _ in written)
    found = {}
    for name, (shape, dim) in NETWORK.items():
        whole = [size * 2 if axis == dim else size for axis, size in enumerate(shape)]
        found[f"model.{name}"] = torch.empty(whole)
    dcp.load(found, checkpoint_id=tmp_path / "iter_0000001", no_dist=True)
    for name, (shape, dim) in NETWORK.items():
        local = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
        wanted = local if dim is None else torch.cat((local, local + 1000), dim)
        assert torch.equal(found[f"model.{name}"], wanted)
    assert all(run_ranks(read_by_megatron, 2, tmp_path / "iter_0000001"))


def read_by_megatron(directory) -> bool:
    """True if megatron-core's own loading gives this rank of TP 2 its half."""
    from megatron.core import dist_checkpointing  # which the network itself does not use

    parallel = ParallelContext.start(tensor_size=2)
    split = {
        f"model.{name}": dist_checkpointing.ShardedTensor.from_rank_offsets(
            f"model.{name}", torch.empty(shape), (dim, parallel.tensor_rank, 2)
        )
        for name, (shape, dim) in NETWORK.items()
        if dim is not None
    }
    found = dist_checkpointing.load(split, str(directory))
    first = 1000.0 * parallel.tensor_rank
    return all(torch.equal(tensor.flatten(), torch.arange(first, first + tensor.numel())) for tensor in found.values())

"""The other ranks of a simulated world, for `world.py`: their answers in the store, and their files of a checkpoint."""

import collections
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace


class OtherRanks:
    """A store in which all other ranks have answered as soon as rank 0 asks; counts the calls of rank 0's main thread."""

    def __init__(self, ranks: int):
        self.ranks = ranks
        self.values: dict[str, bytes] = {}
        self.calls: collections.Counter[str] = collections.Counter()
        self.written: dict[int, tuple[list, dict]] = {}  # by rank: entries of the index, and checksums

    def clone(self) -> "OtherRanks":
        return self

    def set(self, key: str, value: str) -> None:
        self._count("set")
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        self._count("get")
        return self._alive() if key.startswith("alive/") else self.values[key]

    def add(self, key: str, amount: int) -> int:
        self._count("add")
        self.values[key] = str(int(self.values.get(key, b"0")) + amount).encode()
        return int(self.values[key])

    def check(self, keys: list[str]) -> bool:
        self._count("check")
        return keys != ["gone"]

    def delete_key(self, key: str) -> bool:
        self._count("delete")
        return self.values.pop(key, None) is not None

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """What all ranks said in a meeting: as rank 0, but for the files that they wrote."""
        self._count("multi_get")
        place, _, _ = keys[0].rpartition("/")
        own = json.loads(self.values[f"{place}/0"])
        return [json.dumps(self._said(place, own, int(key.rpartition("/")[2]))).encode() for key in keys]

    def _count(self, kind: str) -> None:
        # The thread of the heartbeat calls by the clock: a set, a get and two checks in two seconds, in any world.
        if threading.current_thread() is threading.main_thread():
            self.calls[kind] += 1

    def _alive(self) -> bytes:
        return str(time.monotonic()).encode()

    def _said(self, place: str, own, rank: int):
        if rank == 0:
            return own
        if place.startswith("meet/writing the index/"):
            return self.written[rank][0]
        if place.startswith("meet/saving/") and own[1]:
            files = {name for name in own[1] if name.startswith("__0_")}
            return [own[0], self.written[rank][1] if files else {}]
        return own


def write_others(state, folder: Path, store: OtherRanks) -> dict[int, int]:
    """The other ranks' files of a checkpoint, of zeros; returns the bytes of tensors that each rank writes."""
    from mindspeed_mm.checkpoint import torch_dist
    from mindspeed_mm.files import integrity

    folder.mkdir(exist_ok=True)
    parallel, sizes = state.engine.parallel, {}
    for rank in range(parallel.world_size):
        parts = parts_of(state, rank)
        sizes[rank] = sum(part.tensor.nbytes for part in parts)
        path = folder / f"__{rank}_0.distcp"
        if rank:
            entries = list(torch_dist._write(parts, path, lambda what: None))
            store.written[rank] = json.loads(json.dumps(entries)), integrity.measure([path], folder)
    return sizes


def parts_of(state, rank: int) -> list:
    """What a rank writes, with zeros as values."""
    import torch

    from mindspeed_mm.checkpoint.shares import Shares

    parallel = state.engine.parallel
    tensor, data = parallel.tensor_size, parallel.data_and_context.size()
    place = SimpleNamespace(
        data_and_context=group_of(rank // tensor, data),
        tensor=group_of(rank % tensor, tensor),
        tensor_rank=rank % tensor,
        tensor_size=tensor,
    )
    shares, mains = Shares(state.dims, place), shards_of(state.engine, rank // tensor, data)
    keys = ("param", "exp_avg", "exp_avg_sq", "ema_params")
    parts = [part for key in keys for part in shares.of_shards(key, mains, [one.main for one in mains], same=False)]
    values = {name: torch.zeros_like(value) for name, value in state.saved_parameters().items()}
    return parts + shares.of_parameters("model", values)


def group_of(rank: int, size: int) -> SimpleNamespace:
    return SimpleNamespace(rank=lambda: rank, size=lambda: size)


def shards_of(engine, data_rank: int, data_size: int) -> list:
    """The shards of a data rank: Megatron cuts every bucket of a buffer into equal parts."""
    import torch

    from mindspeed_mm.parallel.engine import MainShard

    names, found = {parameter: name for name, parameter in engine.network.named_parameters()}, []
    for buffer in engine.ddp.buffers:
        for bucket in buffer.buckets:
            size = bucket.grad_data.numel() // data_size
            first = bucket.offset + size * data_rank
            for parameter in bucket.params_list:
                start, end, _ = buffer.param_index_map[parameter]
                begin, stop = max(start, first), min(end, first + size)
                if begin < stop:
                    values = torch.zeros(stop - begin)
                    found.append(MainShard(names[parameter], values, begin - start, stop - start, parameter.shape))
    order = {name: number for number, name in enumerate(names.values())}
    return sorted(found, key=lambda one: order[one.name])

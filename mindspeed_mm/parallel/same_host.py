"""Exchanges between ranks of one machine through memory that they share.

gloo sends through the network stack and its own threads, which takes 0.5 to 2 ms however small a tensor is: half of a
small network's step. Here each rank copies its tensor into shared memory, tells the others through sockets, and reads
theirs. A socket ends with its process, so a rank that waits for a dead one gets an error at once.
"""

# Names of arguments differ between versions of torch.
# pyright: reportIncompatibleMethodOverride=false

import contextlib
import dataclasses
import datetime
import mmap
import os
import select
import socket
import struct
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_ROOM = 2**20  # bytes of a rank's tensor in one turn; a larger one takes several turns
_MOST_RANKS = 16  # each has a socket to each other one, and each reads what all have written
_SPIN_S = 1e-3  # a rank asks again and again for so long before it sleeps: waking takes 0.05 ms and more
_MESSAGE = struct.Struct("<q")
_KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32)


def through_memory(group: dist.ProcessGroup, timeout: datetime.timedelta, spins: bool) -> dist.ProcessGroup:
    """A group of the same ranks that exchanges CPU tensors through memory; `group` itself if its ranks cannot share
    memory. Collective over the group.

    timeout: an exchange raises RuntimeError if another rank has not come within this time. spins: True if every rank
    of the machine has a core of its own, so that one may wait without sleeping.
    """
    if group.size() == 1 or group.size() > _MOST_RANKS:
        return group
    with contextlib.ExitStack() as stack:
        offer = _offer(group.size(), stack) if group.rank() == 0 else None
        box: list = [None if offer is None else offer.place]
        dist.broadcast_object_list(box, group=group, group_src=0)
        place: tuple[str, str] | None = box[0]
        link = None if group.rank() == 0 or place is None else _connected(place, stack)
        reached = torch.tensor(int(offer is not None or link is not None))
        dist.all_reduce(reached, op=dist.ReduceOp.MIN, group=group)
        if not reached:
            return group
        if offer is not None:
            memory, peers = offer.handed_out()
        else:
            assert link is not None  # or the group would not have been reached
            memory, peers = _received(link, group)
        return SameHostGroup(group, memory, peers, timeout, spins)


class SameHostGroup(dist.ProcessGroup):
    """Stands for a gloo group whose ranks share memory. What it does not do itself, the gloo group does.

    Exchanges are done when the call returns, also with `async_op`. Sums are in the order of the ranks, so all get the
    same. Two turns of memory are enough: who writes the third knows from the second that all have read the first.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        memory: mmap.mmap,
        peers: Sequence[socket.socket],
        timeout: datetime.timedelta,
        spins: bool,
    ):
        """memory: 2 x ranks x _ROOM bytes. peers: a socket to each other rank."""
        super().__init__(group.rank(), group.size())  # pyright: ignore[reportCallIssue]  # not in torch's stubs
        self._gloo = group
        self._rank, self._size = group.rank(), group.size()
        self._turns = torch.frombuffer(memory, dtype=torch.uint8).view(2, self._size, _ROOM)
        self._turn = 0
        self._files = [peer.fileno() for peer in peers]
        self._peers = tuple(peers)
        weakref.finalize(self, _close, self._peers)
        self._timeout = timeout
        self._spin_s = _SPIN_S if spins else 0.0

    # torch keeps its notes on a group in dictionaries.

    def __hash__(self) -> int:
        return hash(self._gloo)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._gloo

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    # What torch.distributed calls.

    def all_gather_single(self, output: Tensor, x: Tensor, options: Any = None) -> Any:
        if not _plain(x, output):
            return self._gloo._allgather_base(output, x, options)
        rows = output.detach().view(self._size, -1)
        for columns, parts in self._exchanged(x.view(1, -1), 0):
            torch.cat(parts, out=rows[:, columns])
        return _Done()

    def reduce_scatter_single(self, output: Tensor, x: Tensor, options: Any) -> Any:
        if not (_plain(x, output) and options.reduceOp == dist.ReduceOp.SUM):
            return self._gloo._reduce_scatter_base(output, x, options)
        flat = output.detach().view(-1)
        for columns, parts in self._exchanged(x.view(self._size, -1), 1):
            _sum([part[self._rank] for part in parts], flat[columns])
        return _Done()

    def allreduce(self, tensors: list[Tensor], options: Any) -> Any:
        if not (_plain(*tensors) and options.reduceOp == dist.ReduceOp.SUM):
            return self._gloo.allreduce(tensors, options)
        for tensor in tensors:
            flat = tensor.detach().view(-1)
            for columns, parts in self._exchanged(flat[None], 2):
                _sum([part[0] for part in parts], flat[columns])
        return _Done()

    def all_to_all_single(self, output: Tensor, x: Tensor, outputs: list, inputs: list, options: Any) -> Any:
        if outputs or inputs or not _plain(x, output):
            return self._gloo.alltoall_base(output, x, outputs, inputs, options)
        rows = output.detach().view(self._size, -1)
        for columns, parts in self._exchanged(x.view(self._size, -1), 3):
            torch.stack([part[self._rank] for part in parts], out=rows[:, columns])
        return _Done()

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], options: Any = None) -> Any:
        return _all(self.all_gather_single(output, x, options) for output, x in zip(outputs, inputs, strict=True))

    def reduce_scatter_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], options: Any) -> Any:
        return _all(self.reduce_scatter_single(output, x, options) for output, x in zip(outputs, inputs, strict=True))

    def allreduce_coalesced(self, tensors: list[Tensor], options: Any) -> Any:
        return _all(self.allreduce([tensor], options) for tensor in tensors)

    def _exchanged(self, x: Tensor, kind: int) -> Iterator[tuple[slice, list[Tensor]]]:
        """Columns of x [N,C], and these columns of every rank: memory that holds until the exchange after the next one."""
        rows, width = x.shape
        step = max(1, _ROOM // (rows * x.itemsize))
        for begin in range(0, width, step):
            mine = x.detach()[:, begin : begin + step]
            rooms = self._turns[self._turn][:, : mine.nbytes].view(x.dtype).view(self._size, *mine.shape)
            self._turn ^= 1
            rooms[self._rank].copy_(mine)
            self._meet(len(_KINDS) * mine.nbytes + kind)
            yield slice(begin, begin + step), list(rooms)

    def _meet(self, message: int) -> None:
        """Waits until every rank of the group has sent the same number."""
        packed = _MESSAGE.pack(message)
        for file in self._files:
            try:
                os.write(file, packed)
            except OSError as error:
                raise _gone() from error
        until = time.perf_counter() + self._spin_s
        for file in self._files:
            said = self._heard(file, until)
            if said != packed:
                theirs = _in_words(_MESSAGE.unpack(said)[0])
                raise RuntimeError(
                    f"this rank is in: {_in_words(message)}, another in: {theirs}: the ranks run different steps"
                )

    def _heard(self, file: int, until: float) -> bytes:
        said = b""
        while len(said) < _MESSAGE.size:
            try:
                new = os.read(file, _MESSAGE.size - len(said))
            except BlockingIOError:
                if time.perf_counter() >= until:
                    self._sleep(file)
                continue
            except OSError as error:
                raise _gone() from error
            if not new:
                raise _gone()
            said += new
        return said

    def _sleep(self, file: int) -> None:
        """Until there is something to read."""
        waits = select.poll()
        waits.register(file, select.POLLIN)
        if not waits.poll(1000 * self._timeout.total_seconds()):
            raise RuntimeError(f"timed out: a rank of this machine has not come within {self._timeout}")


def _of_gloo(name: str) -> property:
    return property(lambda self: getattr(self._gloo, name))


for _name, _former in {
    "all_gather_single": "_allgather_base",
    "reduce_scatter_single": "_reduce_scatter_base",
    "all_to_all_single": "alltoall_base",
    "all_gather_single_coalesced": "allgather_into_tensor_coalesced",
    "reduce_scatter_single_coalesced": "reduce_scatter_tensor_coalesced",
}.items():
    setattr(SameHostGroup, _former, getattr(SameHostGroup, _name))  # the names before torch 2.13
for _name in set(dir(dist.ProcessGroup)) - set(dir(object)) - set(vars(SameHostGroup)):
    setattr(SameHostGroup, _name, _of_gloo(_name))


class _Done:
    """The work of an exchange that is over."""

    def wait(self, timeout: datetime.timedelta | None = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def _plain(*tensors: Tensor) -> bool:
    return all(x.device.type == "cpu" and x.is_contiguous() and x.numel() and x.dtype in _DTYPES for x in tensors)


def _all(works: Iterable[Any]) -> Any:
    for work in works:
        work.wait()
    return _Done()


def _sum(parts: list[Tensor], output: Tensor) -> None:
    total = output.detach().view(-1)
    torch.add(parts[0], parts[1], out=total)
    for part in parts[2:]:
        total += part


def _in_words(message: int) -> str:
    size, kind = divmod(message, len(_KINDS))
    return f"{_KINDS[kind]} of {size} bytes"


def _close(peers: Sequence[socket.socket]) -> None:
    for peer in peers:
        peer.close()


def _gone() -> RuntimeError:
    return RuntimeError("connection closed by peer: a rank of this machine is gone")


@dataclasses.dataclass(frozen=True, slots=True)
class _Offer:
    """What the first rank has made for all."""

    place: tuple[str, str]  # where it listens: name of the machine, path
    listener: socket.socket
    memory: int
    ends: list[list[socket.socket]]  # of each rank, to each other one

    def handed_out(self) -> tuple[mmap.mmap, list[socket.socket]]:
        """Sends every other rank the memory and its sockets; returns this rank's."""
        for _ in self.ends[1:]:
            with self.listener.accept()[0] as link:
                rank = _MESSAGE.unpack(link.recv(_MESSAGE.size))[0]
                socket.send_fds(link, [b"m"], [self.memory, *(end.fileno() for end in self.ends[rank])])
        return mmap.mmap(self.memory, 0), [end.dup() for end in self.ends[0]]


def _offer(ranks: int, stack: contextlib.ExitStack) -> _Offer | None:
    """None where a system refuses; `stack` closes what only this function needs open."""
    try:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mindspeed_mm-"))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        path = str(Path(folder, "meet"))
        listener.bind(path)  # refuses a path of more than about 100 characters
        listener.listen(ranks)
        if hasattr(os, "memfd_create"):
            memory = os.memfd_create("mindspeed_mm")
        else:
            memory = os.open(Path(folder, "memory"), os.O_CREAT | os.O_RDWR)
        stack.callback(os.close, memory)
        os.ftruncate(memory, 2 * ranks * _ROOM)
        ends: list[list[socket.socket]] = [[] for _ in range(ranks)]
        for one in range(ranks):
            for other in range(one):
                for rank, end in zip((one, other), socket.socketpair(), strict=True):
                    end.setblocking(False)
                    ends[rank].append(stack.enter_context(end))
        return _Offer((socket.gethostname(), path), listener, memory, ends)
    except OSError:
        return None


def _connected(place: tuple[str, str], stack: contextlib.ExitStack) -> socket.socket | None:
    """A connection to the first rank of the group; None if it is on another machine or in another container."""
    host, path = place
    if host != socket.gethostname():
        return None
    link = stack.enter_context(socket.socket(socket.AF_UNIX))
    try:
        link.connect(path)
    except OSError:
        return None
    return link


def _received(link: socket.socket, group: dist.ProcessGroup) -> tuple[mmap.mmap, list[socket.socket]]:
    """This rank's memory and sockets, from the first rank."""
    link.send(_MESSAGE.pack(group.rank()))
    _, (memory, *ends), _, _ = socket.recv_fds(link, 1, group.size())
    try:
        if len(ends) < group.size() - 1:
            raise RuntimeError(f"{len(ends)} of {group.size() - 1} sockets came: too many open files (ulimit -n)")
        return mmap.mmap(memory, 0), [socket.socket(fileno=end) for end in ends]
    finally:
        os.close(memory)

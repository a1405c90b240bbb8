"""Reusable shared memory in which workers make clips.

The kernel zeroes and maps each page of new memory at its first touch. For a clip of 121x576x1024 (0.9 GB) that takes
as long as decoding a fifth of it. So a worker keeps its buffers, and the main process tells it which ones are free
again.
"""

import math
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mindspeed_mm.errors import ConfigError

Allocate = Callable[[Sequence[int]], Tensor]

_FOLDER = "/dev/shm"
_CLIPS_A_WORKER = 4  # two made ahead, one in the making, one in use


class SharedBuffers:
    """A worker's buffers: `allocate` takes one, `lend` passes it to the main process, `take_back` frees it."""

    def __init__(self, num_workers: int = 0):
        """num_workers: number of processes with such buffers, for the message about full shared memory."""
        self._num_workers = max(1, num_workers)
        self._free: list[torch.UntypedStorage] = []
        self._taken: list[torch.UntypedStorage] = []
        self._lent: dict[int, torch.UntypedStorage] = {}
        self._numbers = 0

    def allocate(self, shape: Sequence[int]) -> Tensor:
        """An uninitialised fp32 tensor that another process can map without a copy.

        Raises ConfigError if the system's shared memory is full.
        """
        count = math.prod(shape)
        storage = self._free_one(4 * count) or self._new(4 * count)
        self._taken.append(storage)
        return torch.empty(0).set_(storage, 0, (count,), (1,)).view(*shape)

    def lend(self, tensor: Tensor | None) -> int | None:
        """Number of the buffer that holds `tensor`, or None. All other taken buffers become free."""
        number = None
        for storage in self._taken:
            if tensor is not None and storage.data_ptr() == tensor.untyped_storage().data_ptr():
                number = self._numbers
                self._lent[number] = storage
            else:
                self._free.append(storage)
        self._taken.clear()
        self._numbers += 1
        return number

    def take_back(self, numbers: Sequence[int]) -> None:
        """Frees buffers that the main process no longer uses."""
        self._free += [self._lent.pop(number) for number in numbers]

    def _new(self, size: int) -> torch.UntypedStorage:
        try:
            return torch.UntypedStorage._new_shared(size)  # as torch's own workers do
        except RuntimeError as error:
            raise no_room(error, size, self._num_workers) from None

    def _free_one(self, size: int) -> torch.UntypedStorage | None:
        """The smallest free buffer that is large enough. If all are too small, one is released to make room."""
        self._free.sort(key=torch.UntypedStorage.nbytes)
        for place, storage in enumerate(self._free):
            if storage.nbytes() >= size:
                return self._free.pop(place)
        if self._free:
            self._free.pop()
        return None


def no_room(error: RuntimeError, size: int | None, num_workers: int) -> Exception:
    """Turns torch's error about shared memory into ConfigError; returns other errors unchanged. size: bytes of a clip."""
    if "shared memory" not in str(error) and "shm" not in str(error):
        return error
    reason = " ".join(str(error).split("\n")[0].split())[-100:]
    needed = "the workers' clips fill it"
    if size is not None:
        held = num_workers * _CLIPS_A_WORKER * size
        needed = f"{num_workers} workers with up to {_CLIPS_A_WORKER} clips of {_mib(size)} each need {_mib(held)}"
    return ConfigError(
        f"dataloader_param.num_workers: no shared memory for a clip ({reason}); {_state()}, and {needed} for every rank of "
        f"this machine. Make {_FOLDER} larger (docker run --shm-size; in Kubernetes an emptyDir of medium Memory), or lower "
        "num_workers"
    )


def _state() -> str:
    try:
        found = os.statvfs(_FOLDER)
    except OSError:
        return f"{_FOLDER} is not there"
    return f"{_FOLDER} has {_mib(found.f_blocks * found.f_frsize)}, of which {_mib(found.f_bavail * found.f_frsize)} are free"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"

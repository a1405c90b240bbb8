"""What the simulated NPU was asked to run: one kernel per entry, with the shapes of its tensors."""

import collections
import ctypes
import dataclasses

import torch

_LIBRARY: list[ctypes.CDLL] = []


def use(library: ctypes.CDLL) -> None:
    """Name the stand-ins that this process has loaded; `simulation.server` does."""
    _LIBRARY[:] = [library]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch: "aclnnRmsNorm" and its tensors such as "bf16[4608,1,3072]", inputs and outputs in the operator's order."""

    name: str
    operands: tuple[str, ...]


class Trace:
    """`with Trace() as trace: ...` records the kernels of all threads in `trace.kernels`."""

    kernels: list[Kernel]

    def __enter__(self) -> "Trace":
        torch.npu.synchronize()
        _LIBRARY[0].simulated_trace_clear()
        return self

    def __exit__(self, *error) -> None:
        torch.npu.synchronize()
        lines = _LIBRARY[0].simulated_trace().decode().splitlines()
        self.kernels = [Kernel(name, tuple(operands)) for name, *operands in (line.split(" ") for line in lines)]

    def counts(self) -> dict[str, int]:
        """Launches by kernel name, most frequent first."""
        return dict(collections.Counter(kernel.name for kernel in self.kernels).most_common())

"""Which components are on the device: all of them, or with offloading only those at work."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class Residence:
    """Brings components to the device while they work; with `offload` they wait on the host in between."""

    def __init__(self, device: torch.device, offload: bool = False):
        self.device = device
        self.offload = offload and device.type != "cpu"
        self._at_work: list[nn.Module] = []

    @property
    def home(self) -> torch.device:
        """Where components wait, and where they are built."""
        return torch.device("cpu") if self.offload else self.device

    @contextlib.contextmanager
    def using(self, component: nn.Module) -> Iterator[None]:
        """`component` is on the device inside, and goes home behind the outermost `using` of it."""
        if not self.offload or component in self._at_work:
            yield
            return
        component.to(self.device)
        self._at_work.append(component)
        try:
            yield
        finally:
            self._at_work.remove(component)
            component.to(self.home)

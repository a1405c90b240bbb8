"""Places components on the device: all of them, or with offloading only the active ones."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class Residence:
    """Moves components to the device while they work; with `offload` they stay on the host in between."""

    def __init__(self, device: torch.device, offload: bool = False):
        self.device = device
        self.offload = offload and device.type != "cpu"
        self._at_work: list[nn.Module] = []

    @property
    def home(self) -> torch.device:
        """Device on which components are built and kept while idle."""
        return torch.device("cpu") if self.offload else self.device

    @contextlib.contextmanager
    def using(self, component: nn.Module) -> Iterator[None]:
        """Keeps `component` on the device; with offload it moves back to the host when the outermost `using` ends."""
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

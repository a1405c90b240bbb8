"""Who is on the device when. The meta device stands in for an accelerator."""

import torch
from torch import nn

from mindspeed_mm.sampling.residence import Residence


def where(module: nn.Module) -> str:
    return next(module.parameters()).device.type


def test_with_offload_a_component_is_on_the_device_while_it_works_only():
    moved = []

    class Component(nn.Linear):
        def to(self, device):
            moved.append(torch.device(device).type)
            return self

    residence = Residence(torch.device("meta"), offload=True)
    assert residence.home.type == "cpu"
    component = Component(1, 1)
    with residence.using(component):
        assert moved == ["meta"]
        with residence.using(component):
            pass
        assert moved == ["meta"]
    assert moved == ["meta", "cpu"]


def test_a_component_goes_home_after_an_error_too():
    residence = Residence(torch.device("meta"), offload=True)
    component = nn.Linear(1, 1, device="cpu")
    component.to = lambda device: moved.append(torch.device(device).type)
    moved = []
    try:
        with residence.using(component):
            raise RuntimeError
    except RuntimeError:
        pass
    assert moved == ["meta", "cpu"]


def test_without_offload_nothing_moves():
    residence = Residence(torch.device("meta"))
    component = nn.Linear(1, 1)
    with residence.using(component):
        assert where(component) == "cpu"
    assert residence.home.type == "meta"
    assert not Residence(torch.device("cpu"), offload=True).offload  # the host is the device

"""How parameters are split and drawn (`parallel/partition.py`)."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mindspeed_mm.parallel import partition

ALONE = SimpleNamespace(tensor_size=1, tensor_rank=0)


def drawn() -> list[torch.Tensor]:
    network = nn.Sequential(*(nn.Linear(7, 7) for _ in range(9)))
    partition.fill(network, lambda name, full, generator: full.normal_(generator=generator), 3, ALONE)
    return list(network.parameters())


def test_a_large_network_is_drawn_by_several_threads_with_the_same_numbers(monkeypatch):
    one = drawn()
    monkeypatch.setattr(partition, "_MANY", 1)
    several = drawn()
    assert all(map(torch.equal, one, several)) and len({float(weight.detach().sum()) for weight in one}) == len(one)


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(partition, "_MANY", 1)
    with pytest.raises(ZeroDivisionError):
        partition.fill(nn.Linear(2, 2), lambda *_: 1 / 0, 0, ALONE)

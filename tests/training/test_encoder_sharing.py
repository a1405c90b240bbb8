"""Encoders shared by the ranks of one sample: everybody gets every micro-batch, each encodes its own."""

import dataclasses

from rank_runs import FakeBatch, FakeEncoders
from ranks import run_ranks

from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.hosts import Hosts
from mindspeed_mm.training.encoder_sharing import SharedEncoders

ROUNDS = 2


class Counting(FakeEncoders):
    """Counts its calls; micro-batches of the second round are shorter, as at the seam of two optimizer steps."""

    calls = 0

    def __call__(self, batch):
        self.calls += 1
        encoded = super().__call__(batch)
        if batch.numbers[0] % 3 == 0:
            return dataclasses.replace(encoded, latents=encoded.latents[:, :, :1], keep=encoded.keep[:, :1])
        return encoded


def shared(tensor: int, context: int):
    """What this rank gets in two rounds: its data rank, the micro-batches, and how many it has encoded itself."""
    parallel = ParallelContext.start(tensor_size=tensor, context_size=context)
    hosts = Hosts(parallel)
    encoders = Counting(mask_channels=2)
    share = SharedEncoders(encoders, parallel, hosts)
    place, ranks = hosts.sharers.index(parallel.rank), len(hosts.sharers)
    found = []
    for turn in range(ROUNDS):
        number = parallel.data_rank + parallel.data_size * (turn * ranks + place)
        batch = FakeBatch((number, 100 + number))
        found += [share(batch) for _ in range(ranks)]
    return parallel.data_rank, [as_values(sample) for sample in found], encoders.calls


def as_values(sample):
    tensors = sample.tensors()
    return [t.tolist() for t in tensors], [str(t.dtype) for t in tensors], sample.addresses, sample.paths


def check(tensor: int, context: int):
    everyone = run_ranks(shared, 4, tensor, context)
    data_size = 4 // (tensor * context)
    for data_rank, found, calls in everyone:
        assert calls == ROUNDS and len(found) == ROUNDS * tensor * context
        numbers = [data_rank + data_size * turn for turn in range(len(found))]
        assert found == [as_values(Counting(mask_channels=2)(FakeBatch((number, 100 + number)))) for number in numbers]


def test_tensor_and_context_ranks_take_turns():
    check(2, 2)


def test_each_data_rank_has_rounds_of_its_own():
    check(2, 1)
    check(1, 2)

"""Every collective of a training step on one rank: the network's, the engine's and the reports'.

`tests/planning/test_exchanges.py` counts those of a real step at 512 ranks of torch's fake group and compares.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping

from mindspeed_mm import families
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.base import Collective, Parameter, Work
from mindspeed_mm.planning.base_weights import parameters_of
from mindspeed_mm.planning.job import ITEMSIZE, Job
from mindspeed_mm.planning.memory import Layout, adapters_of, share_of

_FP32 = 4


def work_of(job: Job, layout: Layout) -> Work:
    """One rank's work for a micro-batch. Raises ConfigError for a network without formulas."""
    family = families.of_denoiser(job.denoiser)
    if family.training_work is None:
        raise ConfigError(
            f"model_id {job.denoiser.model_id!r}: its family has no formulas of work, so its time cannot be planned"
        )
    return family.training_work(job.denoiser, share_of(job, layout), parameters_of(job.denoiser))


def of_step(job: Job, layout: Layout) -> list[Collective]:
    """The collectives of a step, equal ones together; those of a single rank are left out.

    An adapter's own exchanges, tensors of its rank, are not among them. Neither are the checkpoint's, nor the reports at
    intervals.
    """
    work, micro_batches = work_of(job, layout), job.micro_batches(layout.data)
    found = [dataclasses.replace(one, count=one.count * micro_batches) for one in work.collectives]
    found += _of_engine(job, layout, work.partial_numbers)
    total: collections.Counter[Collective] = collections.Counter()
    for one in found:
        total[dataclasses.replace(one, count=1)] += one.count
    sizes = group_sizes(layout)
    return [dataclasses.replace(one, count=count) for one, count in total.items() if sizes[one.group] > 1]


def group_sizes(layout: Layout) -> dict[str, int]:
    """Ranks of each group of `ParallelContext`."""
    return {
        "tensor": layout.tensor,
        "context": layout.context,
        "data": layout.data,
        "data_and_context": layout.data * layout.context,
        "everyone": layout.cards,
    }


def _of_engine(job: Job, layout: Layout, partial_numbers: int) -> list[Collective]:
    """Gradients, new weights, the norm, the loss, and the question whether to stop."""
    gradients = _buffer(job, layout)
    item = _FP32 if job.adapter.kind is not None else ITEMSIZE[job.dtype]
    if job.distributed_optimizer:
        found = [
            Collective("reduce-scatter", "data_and_context", gradients * _FP32),
            Collective("all-gather", "data_and_context", gradients * item),
        ]
    else:
        found = [Collective("all-reduce", "data_and_context", gradients * _FP32)]
    if partial_numbers:
        found.append(Collective("all-reduce", "tensor", partial_numbers * _FP32))
    # Without the distributed optimizer every data rank has the whole gradient, so the TP ranks alone add their norms.
    norm = Collective("all-reduce", "everyone" if job.distributed_optimizer else "tensor", _FP32)
    return [*found, norm, Collective("all-reduce", "data", _FP32), Collective("all-reduce", "everyone", 8)]


def _buffer(job: Job, layout: Layout) -> int:
    """Numbers in megatron-core's buffer of gradients.

    For the distributed optimizer each parameter starts at a multiple of 64 numbers, and the end is one of 128 and of the
    ranks that share it. The buffer is in reverse order of the network.
    """
    parameters = adapters_of(job) or parameters_of(job.denoiser)
    sizes = [_local(parameter, layout.tensor) for parameter in reversed(parameters.values())]
    if not job.distributed_optimizer:
        return sum(sizes)
    total = sum(-(-size // 64) * 64 for size in sizes[:-1]) + sizes[-1]
    unit = math.lcm(layout.data * layout.context, 128)
    return -(-total // unit) * unit


def _local(parameter: Parameter, tensor: int) -> int:
    return math.prod(parameter.shape) // (1 if parameter.dim is None else tensor)


def table(found: list[Collective], sizes: Mapping[str, int]) -> str:
    """A line for each kind of exchange, most bytes first."""
    lines = ["count  bytes each       kind            group"]
    for one in sorted(found, key=lambda one: -one.count * one.bytes):
        lines.append(f"{one.count:>5}  {one.bytes:<15,}  {one.kind:<14}  {one.group} of {sizes[one.group]}")
    return "\n".join(lines)

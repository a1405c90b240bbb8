"""Inputs of recomputed blocks that wait on the host: every number is as without it, and each is copied once each way."""

import pytest
import torch
from rank_runs import FOUR_BLOCKS, Layout, Run
from ranks import run_ranks
from test_cpu_offload import Counted

from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.parallel.host_inputs import HostInputs

STEPS, BLOCKS = 2, 3


def both(layout: Layout) -> tuple[bool, int, int, int]:
    """Whether losses, norms and weights are equal; numbers that were stored and fetched; numbers of a block's inputs."""
    (plain, hosted), copies, sizes = (Run(layout, denoiser=FOUR_BLOCKS) for _ in range(2)), Counted(), []
    hosted.network.keep_inputs_on_host(HostInputs(copies, BLOCKS))
    block = hosted.network.blocks()[1]
    block.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].numel() + inputs[1].numel()))
    curves = [[(one.loss, one.report.gradient_norm) for one in run.steps(STEPS)] for run in (plain, hosted)]
    equal = all(map(torch.equal, plain.network.parameters(), hosted.network.parameters()))
    return curves[0] == curves[1] and equal, copies.stored, copies.fetched, sum(sizes) // 2  # the block runs twice


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (1, Layout(micro_batch=2, recompute_blocks=4)),
        (2, Layout(tensor=2, sequence_parallel=True, micro_batch=4, dtype="bf16", recompute_blocks=3, dropout=0.1)),
        (1, Layout(micro_batch=4, recompute_blocks=4, adapter=AdapterConfig(kind="lora", rank=2, dropout=0.1))),
    ],
    ids=str,
)
def test_every_number_is_that_of_a_run_without_it(ranks, layout):
    for equal, stored, fetched, inputs in run_ranks(both, ranks, layout):
        assert equal
        assert stored == fetched == BLOCKS * inputs

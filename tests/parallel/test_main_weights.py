"""The update over lists gives what Megatron's own methods give, to the last bit, by few operators."""

import pytest
import torch
from rank_runs import FOUR_BLOCKS, Layout, Run
from ranks import run_ranks
from torch.utils._python_dispatch import TorchDispatchMode

STEPS = 3
MOST_OPERATORS = 40  # of an update; the network has 190 parameters, and each took about thirty before


class Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def ours(engine) -> tuple[bool, float]:
    squared, overflow = engine.finish_gradients().tolist()
    engine.note_overflow(overflow > 0)
    norm = squared**0.5
    if not overflow:
        engine.update()
    return overflow > 0, norm


def megatrons(engine) -> tuple[bool, float]:
    from megatron.core.distributed import finalize_model_grads

    with engine.platform.engine_scope():
        engine.ddp.config.sequence_parallel = engine.parallel.tensor_size > 1  # sums marked gradients over TP
        finalize_model_grads([engine.ddp])
        overflow = engine.optimizer.prepare_grads()
        norm = engine.optimizer.get_grad_norm()
        if not overflow:
            engine.optimizer.step_with_ready_grads()
    return overflow, norm


def trajectory(layout: Layout, update, settings: dict) -> tuple[list, list[torch.Tensor], list[torch.Tensor]]:
    """Overflow and norm of each step; main weights and the network's weights in the end."""
    run = Run(layout, optimizer=settings)
    engine, found = run.engine, []
    for _ in range(STEPS):
        engine.start_step()
        for index in range(run.micro_batches):
            with engine.micro_batch(last=index == run.micro_batches - 1):
                engine.backward(run.step.objective(engine.ddp, next(run.stream)).value)
        found.append(update(engine))
    return (
        found,
        [shard.main.detach() for shard in engine.main_shards()],
        [p.detach() for p in run.network.parameters()],
    )


def differences(layout: Layout, settings: dict) -> tuple[bool, int, int, list]:
    mine, theirs = (trajectory(layout, update, settings) for update in (ours, megatrons))
    unequal = [sum(not torch.equal(a, b) for a, b in zip(mine[part], theirs[part], strict=True)) for part in (1, 2)]
    return mine[0] == theirs[0], *unequal, mine[0]


@pytest.mark.parametrize(
    ("ranks", "layout", "settings"),
    [
        (1, Layout(micro_batch=2), {}),
        (1, Layout(micro_batch=4, distributed_optimizer=False), {}),
        (1, Layout(micro_batch=4, dtype="bf16"), {"grad_reduce_in_fp32": True}),
        (1, Layout(micro_batch=4, dtype="bf16"), {"grad_reduce_in_fp32": False}),
        (1, Layout(micro_batch=4, dtype="bf16", distributed_optimizer=False), {}),
        (1, Layout(micro_batch=4, dtype="fp16"), {}),
        (2, Layout(micro_batch=2), {}),
        (2, Layout(micro_batch=2, overlap=True, overlap_gather=False), {}),
        (2, Layout(micro_batch=2, dtype="bf16"), {}),
        (2, Layout(micro_batch=2, distributed_optimizer=False), {}),
        (2, Layout(micro_batch=4, tensor=2, sequence_parallel=True), {}),
        (2, Layout(micro_batch=4, tensor=2, distributed_optimizer=False), {}),
    ],
    ids=str,
)
def test_an_update_is_megatrons(ranks, layout, settings):
    for same_norms, main, network, found in run_ranks(differences, ranks, layout, settings):
        assert same_norms, found
        assert (main, network) == (0, 0)


def operators(layout: Layout) -> tuple[int, int]:
    run = Run(layout, denoiser=FOUR_BLOCKS)
    run.steps(1)
    run.engine.start_step()
    run.engine.backward(run.step.objective(run.engine.ddp, next(run.stream)).value)
    with Counter() as counter:
        run.optimizer()
    return counter.count, len(run.engine.main_shards())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_update_takes_few_operators(dtype):
    ((count, shards),) = run_ranks(operators, 1, Layout(micro_batch=4, dtype=dtype))
    assert shards > 150
    assert count <= MOST_OPERATORS

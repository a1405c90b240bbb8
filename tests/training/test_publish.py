"""With --overlap-param-gather nobody reads a weight that has not come yet, and whoever saves or resumes has them all.

The network's weights are in many small buckets, and every update spoils what a rank has not been sent: NaN wherever another
data rank holds the new weights. One such number that is read, and what is made of it is NaN.
"""

import dataclasses
import math

import pytest
import torch
from rank_runs import DENOISER, FakeEncoders, Layout, Run
from ranks import run_ranks

from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.files import torch_state
from mindspeed_mm.training.evaluation import Evaluation
from mindspeed_mm.training.task import FlowMatchingTask

BUCKET = 10_000  # numbers; the tiny network has half a million
OVERLAP = Layout(micro_batch=2, overlap=True, bucket=BUCKET)
DENSE = dataclasses.replace(DENOISER, sparse_n=(1, 1, 1))  # blocks that torch.compile takes with few graphs


def spoil_updates(run: Run) -> Run:
    """Whatever an update leaves to be gathered is NaN until then."""
    engine, update = run.engine, run.engine.update
    group = engine.parallel.data_and_context

    def update_and_spoil():
        update()
        for bucket in (bucket for bucket_group in engine.ddp.bucket_groups for bucket in bucket_group.buckets):
            for owner, part in enumerate(bucket.param_data.chunk(group.size())):
                if owner != group.rank():
                    part.fill_(math.nan)

    engine.update = update_and_spoil
    return run


def gathered(run: Run) -> dict[str, torch.Tensor]:
    """The main weights as the network should hold them, on the first data rank."""
    return {name: value.to(run.network.proj_out.weight.dtype) for name, value in (run.weights() or {}).items()}


def network_of(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in run.network.named_parameters()}


def differing(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> int:
    """Number of weights that are not equal; NaN is equal to nothing."""
    assert mine.keys() == theirs.keys()
    return sum(int((mine[name] != theirs[name]).sum()) for name in mine)


# ------------------------------------------------------------------------------------------------------------- training


def losses(layout: Layout, denoiser, batch: int, steps: int, spoil: bool) -> tuple[int, list[float]]:
    """Number of buckets, and the curve."""
    run = Run(layout, denoiser=denoiser, batch=batch)
    if spoil:
        spoil_updates(run)
    found = [result.loss for result in run.steps(steps)]
    run.engine.publish()  # no gather is under way when this rank leaves its groups
    return len(run.engine.ddp.bucket_groups), found


@pytest.mark.parametrize(
    ("ranks", "layout", "denoiser", "batch", "steps"),
    [
        (2, Layout(dtype="bf16", recompute_feed_forwards=6), DENOISER, 4, 3),
        # Five samples in a row have texts of one length: torch.compile makes no graphs for others.
        (2, Layout(micro_batch=5, recompute_blocks=1, compile="eager", dropout=0.1), DENSE, 10, 2),
        (4, Layout(tensor=2, micro_batch=2), DENOISER, 4, 2),
        (4, Layout(tensor=2, sequence_parallel=True, micro_batch=2, recompute_blocks=6), DENOISER, 4, 2),
        (4, Layout(context=2, micro_batch=2), DENOISER, 4, 2),
    ],
    ids=str,
)
def test_no_weight_is_read_before_it_is_gathered(ranks, layout, denoiser, batch, steps):
    """The second step reads what the first one's update has left."""
    gradients = dataclasses.replace(layout, overlap=True, overlap_gather=False, bucket=BUCKET, compile=None)
    _, wanted = run_ranks(losses, ranks, gradients, denoiser, batch, steps, False)[0]
    both = dataclasses.replace(layout, overlap=True, bucket=BUCKET)
    for buckets, curve in run_ranks(losses, ranks, both, denoiser, batch, steps, True):
        assert buckets > 10
        assert curve == wanted


# --------------------------------------------------------------------------------------------- whoever else reads weights


class HeldOut:
    """Batches of the stream, the same ones again and again."""

    def __init__(self, run: Run):
        self.run = run

    def rewind(self) -> None:
        self.run.stream.seen = 0

    def __iter__(self):
        return self.run.stream


def evaluated(layout: Layout, spoil: bool) -> tuple[dict[str, float], float]:
    """What evaluation finds, and the loss of the step after it."""
    run = Run(layout)
    if spoil:
        spoil_updates(run)
    run.steps(2)
    task = FlowMatchingTask(DiffusionConfig(), DENOISER, 5)
    found = Evaluation(run.engine, run.ema, FakeEncoders(), task, HeldOut(run), 1)()
    return found, run.steps(1)[0].loss


def test_evaluation_reads_published_weights_and_their_averages():
    gradients = dataclasses.replace(OVERLAP, overlap_gather=False)
    wanted = run_ranks(evaluated, 2, gradients, False)
    assert run_ranks(evaluated, 2, OVERLAP, True) == wanted
    assert all(math.isfinite(value) for value in wanted[0][0].values())


def sampled() -> tuple[int, int]:
    """Weights that differ from the main weights when videos are made, with another number of forward passes on each rank."""
    run = spoil_updates(Run(OVERLAP))
    found = []

    def sampler(iteration: int) -> None:
        wanted = gathered(run)
        found.append(differing(network_of(run), wanted) if run.parallel.is_first else 0)
        sample = FakeEncoders()(next(run.stream))
        with torch.no_grad():
            for _ in range(1 + run.parallel.data_rank):
                out = run.network(sample.latents, torch.full((2,), 0.5), sample.conditions, sample.keep)
        found.append(int((~out.isfinite()).sum()))

    trainer = run.trainer(2)
    trainer.sampler = sampler
    trainer.fit()
    return tuple(found)


def test_videos_while_training_are_made_with_published_weights():
    assert run_ranks(sampled, 2) == [(0, 0), (0, 0)]


def with_lists_of_handles(run: Run) -> Run:
    """Bucket groups that act as those of MindSpeed (core_r0.16.0): a gather under way is a list of handles.

    Its start_param_sync(force_sync=True) calls `wait` on the list, which has none.
    """

    def replace(group) -> None:
        megatrons = group.start_param_sync

        def start(force_sync: bool = False) -> None:
            if force_sync and group.param_gather_handle is not None:
                group.param_gather_handle.wait()
            megatrons(force_sync=force_sync)
            group.param_gather_handle = group.param_gather_handle and [group.param_gather_handle]

        def finish(skip_next_bucket_dispatch: bool = False) -> None:
            if not group.param_gather_dispatched:
                group.start_param_sync()
            for handle in group.param_gather_handle or []:
                handle.wait()
            group.param_gather_handle = None

        group.start_param_sync, group.finish_param_sync = start, finish

    for group in run.engine.ddp.bucket_groups:
        replace(group)
    return run


def published_on_the_way() -> int:
    """Weights that differ from the main weights after `publish` met a gather that was under way."""
    run = with_lists_of_handles(spoil_updates(Run(OVERLAP, denoiser=DENSE)))
    run.steps(2)
    run.engine.ddp.bucket_groups[0].start_param_sync()
    run.engine.publish()
    wanted = gathered(run)
    return differing(network_of(run), wanted) if run.parallel.is_first else 0


def test_weights_are_gathered_and_published_where_mindspeed_keeps_the_handles():
    assert run_ranks(published_on_the_way, 2) == [0, 0]


# ---------------------------------------------------------------------------------------------------- saving and resuming


def save_and_resume(checkpoint: CheckpointConfig) -> dict:
    layout = dataclasses.replace(OVERLAP, dtype="bf16")
    run = spoil_updates(Run(layout, checkpoint))
    run.steps(1)
    run.saver.save()
    run.saver.complete()
    straight = [result.loss for result in run.steps(1)]

    def resume(dtype: str) -> Run:
        resumed = Run(dataclasses.replace(layout, dtype=dtype), checkpoint)
        resumed.saver.resume(run.saver.store.root)
        return resumed

    again, wide = resume("bf16"), resume("fp32")
    # The embeddings in front are read first; all is compared before any forward pass could gather it.
    return {
        "straight": straight,
        "narrow": (network_of(again), gathered(again)),
        "wide": (network_of(wide), gathered(wide)),
        "resumed": [result.loss for result in again.steps(1)],
    }


def test_a_checkpoint_and_a_resumed_network_hold_the_main_weights(tmp_path):
    found = run_ranks(save_and_resume, 2, CheckpointConfig(save=str(tmp_path)))
    folder = tmp_path / "iter_0000001" / "mp_rank_00"
    model, main = (torch_state.load(folder / name) for name in ("model_optim_rng.pt", "distrib_optim.pt"))
    saved = {name: value for name, value in model["model"].items() if value is not None}
    assert differing(saved, {name: value.bfloat16() for name, value in main["param"].items()}) == 0
    for rank in found:
        assert rank["resumed"] == rank["straight"]
        for precision in ("narrow", "wide"):
            assert differing(rank[precision][0], found[0][precision][1]) == 0

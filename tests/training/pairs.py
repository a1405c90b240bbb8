"""All pairs of what a run can be told, in few runs: layouts, overlap, precision, checkpoints, encoders.

Each run is compared with the plain run on one rank of the same precision, and with itself after a stop and a resume.
"""

import functools
import itertools
from collections.abc import Iterator

import torch
from allpairspy import AllPairs
from rank_runs import SEED, FakeBatch, FakeEncoders, Layout, Run, Stream

from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.build import build_autoencoder
from mindspeed_mm.parallel.hosts import Hosts
from mindspeed_mm.training.encoder_sharing import SharedEncoders
from mindspeed_mm.training.encoders import FrozenEncoders
from mindspeed_mm.types import Batch, Posterior

LAYOUTS = {
    "one rank": {},
    "DP2": {},
    "TP2": {"tensor": 2},
    "TP2 SP": {"tensor": 2, "sequence_parallel": True},
    "CP2": {"context": 2},
    "TP2 x DP2": {"tensor": 2},
    "TP2 SP x CP2": {"tensor": 2, "sequence_parallel": True, "context": 2},
    "CP2 x DP2": {"context": 2},
}
RANKS = {"one rank": 1, "DP2": 2, "TP2": 2, "TP2 SP": 2, "CP2": 2, "TP2 x DP2": 4, "TP2 SP x CP2": 4, "CP2 x DP2": 4}
RECOMPUTE = {"none": {}, "selective": {"recompute_feed_forwards": 3}, "full": {"recompute_blocks": 3}}
FACTORS = {
    "layout": tuple(LAYOUTS),
    "precision": ("fp32", "bf16", "fp16"),
    "recompute": tuple(RECOMPUTE),
    "overlap": ("none", "gradients", "gradients and weights"),
    "distributed_optimizer": (True, False),
    "bucket": (20_000, None),
    "compile": (False, True),
    "accumulation": (1, 2),
    "ema": (True, False),
    "clip": ("fixed", "adaptive"),
    "format": ("torch", "torch_dist"),
    "in_background": (False, True),
    "encoders": ("each", "shared"),
    "features": ("encoded", "stored"),
    "dropout": (0.0, 0.2),
}
STOP, STEPS = 2, 3
# Relative, of losses: the sums of a layout have another order, and 16 bits round what is summed. Four steps on one
# rank differ by 1.1e-7 in fp32, 2.2e-4 in bf16 and 2.4e-5 in fp16 if the batch is summed in 2 or 4 parts; bf16 is 5.6e-4
# and fp16 5.9e-5 from fp32. Weights that were read before they were gathered moved an fp32 loss by 1.5e-5.
TOLERANCES = {"fp32": 1e-6, "bf16": 2e-3, "fp16": 2e-4}
Case = dict[str, object]


def refusal(case: Case) -> str | None:
    """The line with which a run refuses the case, if it does; a part of one will do."""
    if {"overlap", "distributed_optimizer"} <= case.keys():
        both, gradients = case["overlap"] == "gradients and weights", case["overlap"] != "none"
        settings = {"use_distributed_optimizer": case["distributed_optimizer"], "overlap_param_gather": both}
        for name, problem in OptimizerSettings(overlap_grad_reduce=gradients, **settings).problems():
            return f"{name}: {problem}"
    return None


def covering() -> list[Case]:
    """Runs that hold every pair of values which is not refused."""
    names = list(FACTORS)

    def allowed(row: list) -> bool:
        return refusal(dict(zip(names, row, strict=False))) is None

    cases = [dict(zip(names, row, strict=True)) for row in AllPairs(list(FACTORS.values()), filter_func=allowed)]
    for pair in every_pair():  # with a filter, allpairspy leaves out a few
        if refusal(dict(pair)) is None and not any(set(pair) <= set(case.items()) for case in cases):
            cases.append(next(case for case in ({**one, **dict(pair)} for one in cases) if refusal(case) is None))
    return cases


def every_pair() -> Iterator[tuple[tuple[str, object], tuple[str, object]]]:
    """All pairs of two factors' values, those that are refused among them."""
    for (a, first), (b, second) in itertools.combinations(FACTORS.items(), 2):
        for x, y in itertools.product(first, second):
            yield (a, x), (b, y)


def reference(case: Case) -> Case:
    """The plain run on one rank with the same precision and arithmetic."""
    plain = {name: values[0] for name, values in FACTORS.items()}
    same = {name: case[name] for name in ("precision", "clip", "dropout")}
    return {**plain, "distributed_optimizer": False, "overlap": "none", "bucket": None, **same}


# ------------------------------------------------------------------------------------------------------ on every rank


class StoredEncoders:
    """What FakeEncoders say, as features that were stored: posteriors of no spread, and text."""

    def __init__(self):
        autoencoder = build_autoencoder(WFVAEConfig(latent_dim=4), device="meta")
        autoencoder.reset_statistics(torch.device("cpu"))
        self._encoders = FrozenEncoders(autoencoder, None, torch.device("cpu"), SEED)

    def __call__(self, batch: FakeBatch):
        made = FakeEncoders()(batch)
        posterior = Posterior(made.latents, torch.full_like(made.latents, -200.0))
        return self._encoders(Batch(posterior, made.keep, made.conditions.text, None, made.paths, made.addresses))


class SharedStream(Stream):
    """Micro-batches number place, place + n, ... of the stream, each n times, as `Loader` gives them with `share`."""

    def __init__(self, run: Run, place: int, ranks: int):
        super().__init__(run.parallel, run.layout.micro_batch)
        self._place, self._ranks = place, ranks
        self._turn: Iterator[FakeBatch] = iter(())

    def __next__(self) -> FakeBatch:
        width = self.micro_batch * self.ranks
        batch = next(self._turn, None)
        if batch is None:
            first = self.seen + self._place * width
            self._turn = iter(
                [FakeBatch(tuple(self.numbers[first : first + width][self.rank :: self.ranks]))] * self._ranks
            )
            batch = next(self._turn)
        self.seen += width
        return batch


def build(case: Case, checkpoint: CheckpointConfig) -> Run:
    """The run of a case on this rank."""
    data = 2 if "DP2" in case["layout"] else 1
    layout = Layout(
        **LAYOUTS[case["layout"]],
        **RECOMPUTE[case["recompute"]],
        micro_batch=4 // (data * case["accumulation"]),
        distributed_optimizer=case["distributed_optimizer"],
        overlap=case["overlap"] != "none",
        overlap_gather=case["overlap"] == "gradients and weights",
        bucket=case["bucket"],
        compile="eager" if case["compile"] else None,
        dtype=case["precision"],
        clip_decay=0.9 if case["clip"] == "adaptive" else None,
        dropout=case["dropout"],
    )
    scale = {"initial_loss_scale": 2.0**10}  # fp16 fits it from the first step on
    run = Run(layout, checkpoint, ema=case["ema"], optimizer=scale)
    encoders = StoredEncoders() if case["features"] == "stored" else FakeEncoders()
    if case["encoders"] == "shared":
        hosts = Hosts(run.parallel)
        encoders = SharedEncoders(encoders, run.parallel, hosts)
        run.stream = SharedStream(run, hosts.sharers.index(run.parallel.rank), len(hosts.sharers))
        run.state.loader = run.stream
    run.step.objective.encoders = encoders
    return run


def state_of(run: Run) -> dict[str, list[torch.Tensor]]:
    """Everything that training moves, on this rank."""
    run.engine.publish()
    copies = {
        "weights": run.network.parameters(),
        "main weights": [shard.main for shard in run.engine.main_shards()],
        "EMA": [] if run.ema is None else run.ema.averages(),
        **run.engine.moments(),
    }
    return {name: [value.detach().clone() for value in values] for name, values in copies.items()}


def attempt(case: Case, folder) -> tuple[list[float], list[float], list[str]]:
    """The losses of a run, those after its resume, and what differs at the end between the two."""
    if case["compile"]:
        torch.compiler.reset()
    checkpoint = CheckpointConfig(save=str(folder), format=case["format"], in_background=case["in_background"])
    run = build(case, checkpoint)
    losses = [result.loss for result in run.steps(STOP)]
    run.saver.save()
    losses += [result.loss for result in run.steps(STEPS - STOP)]
    run.saver.complete()
    again = build(case, checkpoint)
    again.saver.resume(run.saver.store.root)
    resumed = [result.loss for result in again.steps(STEPS - STOP)]
    mine, theirs = state_of(run), state_of(again)
    different = [name for name in mine if not all(map(torch.equal, mine[name], theirs[name]))]
    return losses, resumed, different


def plain(case: Case) -> list[float]:
    """The losses of a run without a checkpoint."""
    return [result.loss for result in build(case, CheckpointConfig()).steps(STEPS)]


def farthest(losses: list[float], wanted: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(mine - theirs) / abs(theirs) for mine, theirs in zip(losses, wanted, strict=True))


def label(case: Case) -> str:
    return functools.reduce(lambda text, item: f"{text}, {item[0]} {item[1]}", list(case.items())[1:], case["layout"])

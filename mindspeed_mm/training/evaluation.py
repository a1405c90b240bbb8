"""Loss on held-out clips: fixed noise, five bands of sigma, live weights and averaged weights.

The training loss draws new noise levels and noise in every step, so it fluctuates. Here both are fixed, so two
evaluations compare.
"""

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.data.feed.loader import Loader
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.parallel.seeds import generator
from mindspeed_mm.training.encoders import Encoded, FrozenEncoders, per_sample_noise
from mindspeed_mm.training.held_out import EMA_HELD_OUT, HELD_OUT, TRAINED_ON
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.types import sent

BANDS = 5


class Evaluation:
    """Evaluates `iterations` micro-batches of a held-out list on each data rank; every method is collective."""

    def __init__(
        self,
        engine: Engine,
        ema: Ema | None,
        encoders: FrozenEncoders,
        task: FlowMatchingTask,
        loader: Loader,
        iterations: int,
        training: Loader | None = None,
    ):
        """training: clips of the run, of which as many are evaluated."""
        self.engine = engine
        self.ema = ema
        self.encoders = encoders
        self.task = task
        self.loader = loader
        self.iterations = iterations
        self.training = training

    def __call__(self) -> dict[str, float]:
        """{"eval loss": ..., "eval loss sigma 0.0-0.2": ..., "ema eval loss": ...}: means over the list's samples."""
        samples = self._samples(self.loader)
        self.engine.publish()
        found = self._losses(samples, HELD_OUT)
        if self.training is not None:
            found |= self._losses(self._samples(self.training), TRAINED_ON)
        if self.ema is not None:
            with self.engine.weights_of(self.ema.averages()):
                found |= self._losses(samples, EMA_HELD_OUT)
        return found

    def _samples(self, loader: Loader) -> list[Encoded]:
        """Encodes a list once for both sets of weights; it is short enough to keep."""
        return encoded(loader, self.encoders, self.iterations, self.engine.parallel)

    def _losses(self, samples: list[Encoded], name: str) -> dict[str, float]:
        network = self.engine.network
        network.eval()
        found = losses(network, samples, self.task, self.engine.parallel)
        network.train()
        return {name + band: loss for band, loss in found.items()}


def encoded(loader: Loader, encoders: FrozenEncoders, iterations: int, parallel: ParallelContext) -> list[Encoded]:
    """The first `iterations` micro-batches of a held-out list."""
    loader.rewind()
    batches = iter(loader)
    rounds = tqdm(
        range(iterations),
        desc="encoding held-out clips",
        disable=not parallel.is_first,
        leave=False,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,  # seconds; a log file gets fewer lines than a terminal
    )
    samples = []
    for _ in rounds:
        samples.append(encoders(next(batches)))
        parallel.pulse.beat("encoding a held-out batch")
    return samples


@torch.no_grad()
def losses(
    network: nn.Module, samples: list[Encoded], task: FlowMatchingTask, parallel: ParallelContext
) -> dict[str, float]:
    """{"": mean loss, " sigma 0.0-0.2": ..., ...}: means over all ranks' samples; collective.

    network: called as a `Denoiser`.
    """
    sums = torch.zeros(BANDS, dtype=torch.float64)
    for sample in samples:
        for band in range(BANDS):
            sums[band] += _band_loss(network, sample, task, band).double().cpu()
            parallel.pulse.beat("evaluating a batch")
    dist.all_reduce(sums, group=parallel.data)
    means = (sums / (len(samples) * parallel.data_size)).tolist()
    bands = {f" sigma {band / BANDS:.1f}-{(band + 1) / BANDS:.1f}": mean for band, mean in enumerate(means)}
    return {"": sum(means) / BANDS, **bands}


def _band_loss(network: nn.Module, sample: Encoded, task: FlowMatchingTask, band: int) -> Tensor:
    """Mean squared error within a band; noise level and noise are drawn per sample."""
    z0, seed, addresses = sample.latents, task.seed, sample.addresses
    levels = [torch.rand(1, generator=generator(seed, "eval sigma", band, *address)) for address in addresses]
    sigma = sent(task.level((torch.cat(levels) + band) / BANDS, LatentGrid(*z0.shape[2:])), z0.device)
    noise = per_sample_noise(z0, seed, "eval noise", addresses)
    return task.loss_at(network, sample, sigma, noise, task.unweighted)

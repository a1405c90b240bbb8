"""Reconstruction quality of an autoencoder on a list of clips, and statistics of its latents."""

import dataclasses
import itertools

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from mindspeed_mm.config.autoencoder import AutoencoderEvaluationConfig
from mindspeed_mm.data.feed.build import build_loader, joiner
from mindspeed_mm.data.feed.dataset import build_dataset
from mindspeed_mm.data.feed.loader import Loader
from mindspeed_mm.data.feed.sampler import Split
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.models.build import build_autoencoder
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.ops.quality import psnr, ssim
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.weights import load_autoencoder

_LEAST_DEVIATION = 1e-4  # below this deviation a latent channel counts as constant


@dataclasses.dataclass(frozen=True, slots=True)
class AutoencoderQuality:
    """Results of an evaluation on `clips` clips.

    psnr (dB) and ssim: means over clips; the reconstruction decodes the posterior's mean without noise.
    shift, scale: the mean and the inverse deviation of each channel of z, posterior noise included; (z - shift) *
    scale has mean 0 and deviation 1.
    comparison: [T,H,3W,3] uint8; each row shows the original of a clip, its reconstruction and four times their
    difference.
    """

    clips: int
    psnr: float
    ssim: float
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    comparison: Tensor


class HeldOutQuality:
    """PSNR and SSIM on `iterations` micro-batches of a held-out list on each data rank; every method is collective.

    Live weights and averaged weights; the reconstruction decodes the posterior's mean, so two evaluations compare.
    """

    def __init__(self, engine: Engine, ema: Ema | None, autoencoder: WFVAE, loader: Loader, iterations: int):
        """autoencoder: the part of the engine's network that is measured."""
        self.engine = engine
        self.ema = ema
        self.autoencoder = autoencoder
        self.loader = loader
        self.iterations = iterations

    def __call__(self) -> dict[str, float]:
        """{"eval PSNR": dB, "eval SSIM": ..., "ema eval PSNR": ...}: means over the list's clips."""
        self.engine.publish()
        found = self._quality("eval")
        if self.ema is not None:
            with self.engine.weights_of(self.ema.averages()):
                found |= self._quality("ema eval")
        return found

    def _quality(self, name: str) -> dict[str, float]:
        """Decodes the list anew for each set of weights, since clips are too large to keep."""
        network, parallel = self.engine.network, self.engine.parallel
        network.eval()
        self.loader.rewind()
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in itertools.islice(self.loader, self.iterations):
            video = batch.clips.to(next(network.parameters()).device)
            output, *_ = _reconstruct(self.autoencoder, video)
            ratios, similarities = _similarity(_unit(video), _unit(output))
            sums += torch.tensor([sum(ratios), sum(similarities), len(ratios)], dtype=torch.float64)
            parallel.pulse.beat("evaluating a batch")
        network.train()
        dist.all_reduce(sums, group=parallel.data)
        ratio, similarity, clips = sums.tolist()
        return {f"{name} PSNR": ratio / clips, f"{name} SSIM": similarity / clips}


def measure(config: AutoencoderEvaluationConfig, device: torch.device) -> AutoencoderQuality:
    """Reconstructs the first clips of the list on one process. Raises CheckpointError if a latent channel is constant."""
    autoencoder = build_autoencoder(config.autoencoder, device=device)
    load_autoencoder(autoencoder, config.autoencoder.from_pretrained)
    data = config.data.held_out(config.data_path)
    loader = build_loader(
        build_dataset(data.dataset_param, global_batch_size=None, seed=config.seed),
        data,
        Split(config.batch_size, config.batch_size),
        joiner(data, config.batch_size, config.autoencoder.strides, patch_size=1),
        seed=config.seed,
        evaluation=True,
    )
    clips = min(config.clips, len(loader.dataset.paths))
    latents, ratios, similarities, rows = _Moments(config.autoencoder.latent_dim), [], [], []
    rounds = -(-clips // config.batch_size)
    for batch in tqdm(itertools.islice(loader, rounds), total=rounds, desc="reconstructing", unit="batch", leave=False):
        left = clips - len(ratios)  # the last batch may repeat clips
        video = batch.clips[:left].to(device)
        output, mean, logvar = _reconstruct(autoencoder, video)
        latents.add(mean, logvar)
        original, output = _unit(video), _unit(output)
        for all_clips, these in zip((ratios, similarities), _similarity(original, output), strict=True):
            all_clips += these
        rows += list(_side_by_side(original, output))[: config.video_clips - len(rows)]
    shift, scale = latents.normalisation()
    comparison = torch.cat(rows, dim=1)
    return AutoencoderQuality(clips, sum(ratios) / clips, sum(similarities) / clips, shift, scale, comparison)


@torch.no_grad()
def _reconstruct(autoencoder: WFVAE, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, logvar = autoencoder.encode_moments(video)
    return autoencoder.decode_unscaled(mean), mean, logvar


def _similarity(original: Tensor, output: Tensor) -> tuple[list[float], list[float]]:
    """PSNR (dB) and SSIM of each clip, from [B,3,T,H,W] in [0,1]."""
    return psnr(original, output).tolist(), ssim(original, output).tolist()


class _Moments:
    """Accumulates sums over latents and gives their mean and deviation per channel."""

    def __init__(self, channels: int):
        self.count = 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64)

    def add(self, mean: Tensor, logvar: Tensor) -> None:
        """Adds posteriors [B,C,t,h,w]: E z = mean, E z^2 = mean^2 + variance."""
        mean, variance = mean.double().cpu(), logvar.double().exp().cpu()
        axes = (0, 2, 3, 4)
        self.count += mean.numel() // mean.shape[1]
        self.sums += torch.stack((mean.sum(axes), (mean.square() + variance).sum(axes)))

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(shift, scale) per channel."""
        mean, square = self.sums / self.count
        deviation = (square - mean.square()).clamp_min(0).sqrt()
        if deviation.min() < _LEAST_DEVIATION:
            raise CheckpointError(
                f"latent channel {int(deviation.argmin())} has deviation {deviation.min():.1e} on these clips: it carries "
                "nothing, so that it has no scale; train the autoencoder further, or measure on more clips"
            )
        return tuple(mean.tolist()), tuple((1 / deviation).tolist())


def _unit(video: Tensor) -> Tensor:
    """[-1,1] -> [0,1], fp32."""
    return (video.float() / 2 + 0.5).clamp(0, 1)


def _side_by_side(original: Tensor, output: Tensor) -> Tensor:
    """[B,3,T,H,W] in [0,1] -> [B,T,H,3W,3] uint8."""
    difference = (4 * (original - output).abs()).clamp(0, 1)
    pictures = torch.cat((original, output, difference), dim=-1)
    return (255 * pictures).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()

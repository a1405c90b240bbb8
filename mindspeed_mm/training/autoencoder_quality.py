"""Reconstruction quality of an autoencoder on a list of clips, and statistics of its latents."""

import dataclasses
import itertools

import torch
from torch import Tensor
from tqdm import tqdm

from mindspeed_mm.config.autoencoder import AutoencoderEvaluationConfig
from mindspeed_mm.data.feed.loader import build_loader
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.models.build import build_autoencoder
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.ops.quality import psnr, ssim
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


def measure(config: AutoencoderEvaluationConfig, device: torch.device) -> AutoencoderQuality:
    """Reconstructs the first clips of the list on one process. Raises CheckpointError if a latent channel is constant."""
    autoencoder = build_autoencoder(config.autoencoder, device=device)
    load_autoencoder(autoencoder, config.autoencoder.from_pretrained)
    loader = build_loader(
        config.data,
        global_batch_size=config.batch_size,
        micro_batch_size=config.batch_size,
        dp_rank=0,
        dp_size=1,
        seed=config.seed,
        autoencoder_strides=config.autoencoder.strides,
        patch_size=1,
        data_path=config.data_path,
        evaluation=True,
    )
    clips = min(config.clips, len(loader.dataset))
    latents, ratios, similarities, rows = _Moments(config.autoencoder.latent_dim), [], [], []
    rounds = -(-clips // config.batch_size)
    for batch in tqdm(itertools.islice(loader, rounds), total=rounds, desc="reconstructing", unit="batch", leave=False):
        left = clips - len(ratios)  # the last batch may repeat clips
        video = batch.video[:left].to(device)
        output, mean, logvar = _reconstruct(autoencoder, video)
        latents.add(mean, logvar)
        original, output = _unit(video), _unit(output)
        ratios += psnr(original, output).tolist()
        similarities += ssim(original, output).tolist()
        rows += list(_side_by_side(original, output))[: config.video_clips - len(rows)]
    shift, scale = latents.normalisation()
    comparison = torch.cat(rows, dim=1)
    return AutoencoderQuality(clips, sum(ratios) / clips, sum(similarities) / clips, shift, scale, comparison)


@torch.no_grad()
def _reconstruct(autoencoder: WFVAE, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, logvar = autoencoder.encode_moments(video)
    return autoencoder.decode_unscaled(mean), mean, logvar


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

"""Text to video: encoders, denoiser, guidance, Euler steps and the autoencoder's decoder, put together."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mindspeed_mm.checkpoint.released import weights_of
from mindspeed_mm.config import model_dialects
from mindspeed_mm.config.model import TokenizerConfig
from mindspeed_mm.config.reader import build, node_from_python, read_json
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.data.tokens import Tokenizer, load_tokenizer
from mindspeed_mm.diffusion import euler, guidance, schedule
from mindspeed_mm.errors import ConfigError, SamplingError
from mindspeed_mm.models.build import TORCH_DTYPES, build_autoencoder, build_denoiser
from mindspeed_mm.models.sparse_ummdit.model import SparseUMMDiT
from mindspeed_mm.models.text.encoders import TextEncoders
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.seeds import generator
from mindspeed_mm.sampling.prompts import Prompt, compose
from mindspeed_mm.types import TextFeatures
from mindspeed_mm.weights import folder as pretrained_folder
from mindspeed_mm.weights import load_autoencoder, load_denoiser

_T5_LENGTH = 512  # fixed in the original, whatever model_max_length says


class T2VPipeline:
    """Samples videos. `T2VPipeline.from_config(path)(prompt, seed=0)` gives uint8 frames [T,H,W,3]."""

    def __init__(
        self,
        config: SampleModelConfig,
        denoiser: SparseUMMDiT,
        autoencoder: WFVAE,
        text: TextEncoders,
        tokenizers: tuple[Tokenizer, Tokenizer],
        device: torch.device,
    ):
        self.config = config
        self.denoiser = denoiser.eval()
        self.autoencoder = autoencoder.eval()
        self.text = text
        self.tokenizers = tokenizers
        self.device = device

    @classmethod
    def from_config(
        cls,
        config: str | Path | dict | SampleModelConfig,
        *,
        device: torch.device | str = "cpu",
        parallel: ParallelContext | None = None,
        load: str | None = None,
        ema: bool = False,
    ) -> "T2VPipeline":
        """Build all parts of an inference JSON and load their weights.

        load: a Megatron checkpoint directory instead of predictor.from_pretrained; ema: its EMA weights.
        """
        if isinstance(config, (str, Path)):
            config = build(SampleModelConfig, model_dialects.sample_node(read_json(config)))
        elif isinstance(config, dict):
            config = build(SampleModelConfig, model_dialects.sample_node(node_from_python(config, "")))
        device = torch.device(device)
        dtype = TORCH_DTYPES[config.weight_dtype]
        weights = load or config.predictor.from_pretrained
        if weights is None or config.ae.from_pretrained is None:
            raise ConfigError("predictor.from_pretrained and ae.from_pretrained: both are needed to sample")
        denoiser = build_denoiser(
            config.predictor,
            parallel or ParallelContext.current(),
            device=device,
            dtype=config.weight_dtype,
            seed=None,
        )
        load_denoiser(denoiser, weights, ema)
        autoencoder = build_autoencoder(config.ae, device=device)
        load_autoencoder(autoencoder, config.ae.from_pretrained)
        text = TextEncoders(config.text_encoder, config.text_encoder_2, dtype).to(device)
        return cls(config, denoiser, autoencoder, text, _tokenizers(config.tokenizer, config.tokenizer_2), device)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        parallel: ParallelContext | None = None,
        dtype: str | None = None,
    ) -> "T2VPipeline":
        """All parts of a folder that `save_pretrained` or tools/export_pretrained.py wrote.

        dtype: of the text encoders and the denoiser ("fp32", "bf16", "fp16") instead of the folder's.
        """
        config = pretrained_folder.read(folder)
        if dtype is not None:
            config = dataclasses.replace(config, weight_dtype=dtype)
        return cls.from_config(config, device=device, parallel=parallel)

    def save_pretrained(
        self, folder: str | Path, *, copy_encoders: bool = True, max_shard_bytes: int = 5 * 10**9
    ) -> Path:
        """Write configs and weights to a folder for `from_pretrained`, with copies of the text encoders' folders.

        Only where one process holds the whole denoiser; tools/export_pretrained.py needs no process group.
        """
        if self.denoiser.parallel.tensor_size > 1:
            raise ConfigError(
                f"save_pretrained: this rank holds a part of the denoiser, TP is {self.denoiser.parallel.tensor_size}; "
                "use tools/export_pretrained.py"
            )
        return pretrained_folder.write(
            folder,
            self.config,
            weights_of(self.denoiser),
            weights_of(self.autoencoder),
            largest=max_shard_bytes,
            copy_encoders=copy_encoders,
        )

    def __call__(
        self, prompt: str, *, seed: int = 0, negative_prompt: str | None = None, progress: bool = True
    ) -> np.ndarray:
        """One video, uint8 [T,H,W,3], of a prompt; the same for the same seed on every layout."""
        prompts = [self.compose(prompt, negative_prompt)]
        return self.sample(prompts, self.noise(seed, [(0, 0)]), progress=progress)[0]

    def compose(self, prompt: str, negative_prompt: str | None = None) -> Prompt:
        """The prompt as the text encoders will read it, by the config's template and cleaning."""
        config = self.config
        return compose(
            prompt,
            config.pipeline_config.version,
            config.negative_prompt if negative_prompt is None else negative_prompt,
            template=config.use_prompt_template,
            preprocess=config.use_prompt_preprocess,
            clean=config.clean_caption,
        )

    def noise(self, seed: int, addresses: list[tuple[int, int]]) -> Tensor:
        """Starting latents [B,C,T,H,W] in the encoders' precision, from (seed, prompt index, sample index) alone."""
        shape = self.config.latent_grid.shape(1, self.config.predictor.in_channels)
        draws = [torch.randn(shape, generator=generator(seed, "sample", *address)) for address in addresses]
        return torch.cat(draws).to(self.device, TORCH_DTYPES[self.config.weight_dtype])

    @torch.no_grad()
    def sample(self, prompts: list[Prompt], noise: Tensor, *, progress: bool = True) -> np.ndarray:
        """Videos uint8 [B,T,H,W,3] from starting latents, one per prompt."""
        text = self.encode(prompts)
        latents = self.denoise(noise, text, progress=progress)
        video = self.autoencoder.decode(latents.to(self.autoencoder.dtype))
        return to_uint8(video)

    def encode(self, prompts: list[Prompt]) -> TextFeatures:
        """Text features of a batch; with guidance those of the negative prompts first: [2B,...]."""
        texts = [prompt.positive for prompt in prompts]
        if self.guided:
            texts = [prompt.negative for prompt in prompts] + texts
        first, second = self.tokenizers
        return self.text(first(texts).to(self.device), second(texts).to(self.device))

    @property
    def guided(self) -> bool:
        return self.config.diffusion.guidance_scale > 1

    def denoise(self, latents: Tensor, text: TextFeatures, *, progress: bool = True) -> Tensor:
        """Euler steps from noise to clean latents."""
        sigmas = schedule.grid(self.config.diffusion, self.config.latent_grid).to(self.device)
        steps = list(zip(sigmas[:-1], sigmas[1:], strict=True))
        every = 0.1 if sys.stderr.isatty() else 10.0  # seconds; a log file is no terminal
        bar = tqdm(steps, desc="sampling", unit="step", disable=not progress, mininterval=every)
        for index, (sigma, following) in enumerate(bar):
            velocity = self._velocity(latents, sigma, text)
            if not torch.isfinite(velocity).all():
                raise SamplingError(
                    f"step {index + 1} of {len(steps)} (sigma {sigma.item():.4f}): the velocity is not finite; "
                    f"weight_dtype {self.config.weight_dtype!r} may be too narrow for these weights, try bf16 or fp32"
                )
            latents = euler.step(latents, velocity, sigma, following)
        return latents

    def _velocity(self, latents: Tensor, sigma: Tensor, text: TextFeatures) -> Tensor:
        """The guided velocity at one noise level; both halves of guidance are one batch, [without, with] the prompt."""
        if not self.guided:
            return self.denoiser(latents, sigma.expand(latents.shape[0]), text)
        both = self.denoiser(torch.cat((latents, latents)), sigma.expand(2 * latents.shape[0]), text)
        diffusion = self.config.diffusion
        return guidance.combine(*both.chunk(2), diffusion.guidance_scale, diffusion.guidance_rescale)


def to_uint8(video: Tensor) -> np.ndarray:
    """[B,3,T,H,W] in [-1,1] -> uint8 [B,T,H,W,3], rounded to the nearest."""
    pixels = (video.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).cpu().numpy()


def _tokenizers(first: TokenizerConfig, second: TokenizerConfig) -> tuple[Tokenizer, Tokenizer]:
    return load_tokenizer(first, "tokenizer", _T5_LENGTH), load_tokenizer(second, "tokenizer_2")

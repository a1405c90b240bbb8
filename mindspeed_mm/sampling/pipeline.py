"""Text to video: joins encoders, denoiser, guidance, a solver and the autoencoder's decoder."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mindspeed_mm import families, logs
from mindspeed_mm.adapters.attach import detach
from mindspeed_mm.adapters.branches import Branch
from mindspeed_mm.config import hub, model_dialects
from mindspeed_mm.config.adapter_choice import AdapterChoice
from mindspeed_mm.config.distillation import Distilled
from mindspeed_mm.config.image_inputs import ImageInputs
from mindspeed_mm.config.sample import PromptConfig, SampleConfig, SampleModelConfig, SamplingOptions
from mindspeed_mm.diffusion import schedule
from mindspeed_mm.errors import ConfigError, SamplingError
from mindspeed_mm.models.build import build_autoencoder, build_denoiser
from mindspeed_mm.models.denoiser import Conditions, Denoiser
from mindspeed_mm.models.image_conditions import encode_known, finish
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.parallel.collectives import token_parts
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.seeds import generator
from mindspeed_mm.platforms.select import select
from mindspeed_mm.sampling import images, memory
from mindspeed_mm.sampling.denoise import Step, decide_mode, steps
from mindspeed_mm.sampling.requests import Request
from mindspeed_mm.sampling.residence import Residence
from mindspeed_mm.sampling.text import PromptEncoder
from mindspeed_mm.schema import build, check, node_from_python, read_json
from mindspeed_mm.types import TORCH_DTYPES, ImageFeatures
from mindspeed_mm.weights import folder as pretrained_folder
from mindspeed_mm.weights import load_autoencoder, load_denoiser
from mindspeed_mm.weights.adapters import fingerprint_of, load_adapter
from mindspeed_mm.weights.distilled import distilled_of, suited
from mindspeed_mm.weights.released import weights_of

_log = logs.get(__name__)
_TEXTS_KEPT = 256  # texts kept in a notebook and on the web page; one text of v1.5 takes 2 MiB


class T2VPipeline:
    """Samples videos. `T2VPipeline.from_config(path)("a prompt", seed=0)` gives uint8 frames [T,H,W,3]."""

    def __init__(
        self,
        config: SampleModelConfig,
        denoiser: Denoiser,
        autoencoder: WFVAE,
        text: PromptEncoder,
        residence: Residence,
        options: SamplingOptions | None = None,
        source: tuple[str, bool] | None = None,
    ):
        """source: file of the denoiser's weights, and whether they are its EMA weights; adapters are compared with them."""
        self.config = config
        self.denoiser = denoiser.eval()
        self.autoencoder = autoencoder.eval()
        self.text = text
        self.residence = residence
        self.options = options or SamplingOptions()
        self.source = source
        self.adapters: dict[str, dict[str, Branch]] = {}
        self.distilled: Distilled | None = None  # what the weights say of themselves
        # resolves options.guidance_mode "auto"; without a limit the same on all ranks
        self.memory_bytes = self.options.memory_bytes or select(residence.device.type).total_memory()
        check(self.options)
        if self.options.cache_rule.is_on and not denoiser.has_step_cache:
            raise ConfigError(
                f"--step-cache {self.options.step_cache}: {config.predictor.model_id} keeps nothing between steps; use 1"
            )
        if self.options.sage_attention:
            denoiser.use_sage_attention(residence.device)
        if self.options.compile:
            denoiser.compile_blocks()

    @classmethod
    def from_config(
        cls,
        config: str | Path | dict | SampleModelConfig,
        *,
        device: torch.device | str = "cpu",
        parallel: ParallelContext | None = None,
        load: str | None = None,
        ema: bool = False,
        options: SamplingOptions | None = None,
        text: PromptEncoder | None = None,
        adapters: Sequence[AdapterChoice] = (),
    ) -> "T2VPipeline":
        """Builds all parts of an inference JSON and loads their weights.

        Steps and guidance of distilled weights replace those of a file or dict; a SampleModelConfig stays as it is.
        load: a Megatron checkpoint directory, used instead of predictor.from_pretrained; ema: loads its EMA weights, and
        those of adapters that are runs.
        text: encoders that exist already; they may have left if they have encoded all texts.
        """
        is_built = isinstance(config, SampleModelConfig)
        if isinstance(config, (str, Path)):
            config = build(SampleModelConfig, hub.with_local_weights(model_dialects.sample_node(read_json(config))))
        elif isinstance(config, dict):
            config = build(SampleModelConfig, model_dialects.sample_node(node_from_python(config, "")))
        parallel = parallel or ParallelContext.current()
        model, options = memory.for_pipeline(config, options or SamplingOptions(), torch.device(device), parallel)
        residence = Residence(torch.device(device), bool(options.offload))
        weights = load or config.predictor.from_pretrained
        if weights is None or config.ae.from_pretrained is None:
            raise ConfigError("predictor.from_pretrained and ae.from_pretrained: both are needed to sample")
        record = distilled_of(weights, [choice.path for choice in adapters])
        if not is_built:
            config = dataclasses.replace(config, diffusion=suited(config.diffusion, record))
        text = text or PromptEncoder.load(config, residence, _TEXTS_KEPT)
        denoiser = build_denoiser(
            config.predictor,
            parallel,
            device=residence.home,
            dtype=config.weight_dtype,
            seed=None,
        )
        source = (weights, ema and (load is not None or not adapters))
        load_denoiser(denoiser, *source)
        base = fingerprint_of(*source) if adapters else None
        branches = {
            choice.path: load_adapter(denoiser, choice.path, choice.scale, ema=ema, base=base) for choice in adapters
        }
        autoencoder = build_autoencoder(model.ae, device=residence.home)
        load_autoencoder(autoencoder, config.ae.from_pretrained)
        pipeline = cls(config, denoiser, autoencoder, text, residence, options, source=source)
        pipeline.adapters |= branches
        pipeline.distilled = record
        return pipeline

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        parallel: ParallelContext | None = None,
        dtype: str | None = None,
    ) -> "T2VPipeline":
        """Loads all parts from a folder that `save_pretrained` or tools/export_pretrained.py wrote, or a hub's repository
        that holds it (`config/hub.py`).

        dtype: replaces the folder's dtype of text encoders and denoiser ("fp32", "bf16", "fp16").
        """
        config = pretrained_folder.read(hub.local(str(folder)))
        if dtype is not None:
            config = dataclasses.replace(config, weight_dtype=dtype)
        return cls.from_config(config, device=device, parallel=parallel)

    def load_adapter(self, path: str | Path, scale: float = 1.0, *, ema: bool = False) -> None:
        """Adds an adapter, PEFT's folder or the directory of a run, `scale` times its size; several add up.

        The network's own weights stay as they are. ema: the average of a run's. Loading a path again changes its scale.
        Raises CheckpointError for an adapter of another base.
        """
        if self.options.compile:
            raise ConfigError("load_adapter: a network that is compiled takes no adapter; leave out compile")
        self.unload_adapter(path)
        base = None if self.source is None else fingerprint_of(*self.source)
        self.adapters[str(path)] = load_adapter(self.denoiser, path, scale, ema=ema, base=base)

    def unload_adapter(self, path: str | Path) -> None:
        """Takes an adapter off again, if it is there."""
        detach(self.denoiser, self.adapters.pop(str(path), {}))

    def save_pretrained(
        self, folder: str | Path, *, copy_encoders: bool = True, max_shard_bytes: int = 5 * 10**9
    ) -> Path:
        """Writes configs and weights to a folder for `from_pretrained`, with copies of the text encoders' folders.

        Works only where one process holds the whole denoiser; tools/export_pretrained.py needs no process group.
        """
        if self.denoiser.parallel.tensor_size > 1:
            raise ConfigError(
                f"save_pretrained: this rank holds a part of the denoiser, TP is {self.denoiser.parallel.tensor_size}; "
                "use tools/export_pretrained.py"
            )
        return pretrained_folder.write(
            folder,
            self.config,
            weights_of(self.denoiser, self.distilled),
            weights_of(self.autoencoder),
            largest=max_shard_bytes,
            copy_encoders=copy_encoders,
        )

    def __call__(
        self,
        prompt: str,
        *,
        seed: int = 0,
        negative_prompt: str | None = None,
        size: tuple[int, int, int] | None = None,
        guidance_scale: float | None = None,
        steps: int | None = None,
        image: str | Path | np.ndarray | ImageInputs | None = None,
        progress: bool = True,
    ) -> np.ndarray:
        """Samples one video, uint8 [T,H,W,3]; a seed gives the same video on every layout.

        size: frames, height, width; with an image they follow it. image: first frame, a file or uint8 [H,W,3]; or
        ImageInputs, which takes arrays in place of files too. Arguments that are None take the config's value.
        """
        line = PromptConfig(
            **images.inputs_of(image),
            prompt=prompt,
            negative_prompt=negative_prompt,
            input_size=size,
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
        )
        request = Request(images.settings_of(self.config, line), seed)
        if request.warning is not None:
            _log.warning(request.warning)
        return self.sample([request], progress=progress)[0]

    def sample(self, requests: Sequence[Request], *, progress: bool = True) -> np.ndarray:
        """Videos uint8 [B,T,H,W,3] for requests that share one size and one diffusion block."""
        return self.finished(requests, self.denoise(requests, progress=progress))

    def denoise(self, requests: Sequence[Request], *, progress: bool = True) -> Tensor:
        """Clean latents [B,C,T,H,W] for requests that fit in one batch (`Request.alike`)."""
        total = requests[0].model.diffusion.num_inference_steps
        last: Step | None = None
        every = 0.1 if sys.stderr.isatty() else 10.0  # seconds; a log file gets fewer lines than a terminal
        for step in tqdm(
            self.steps(requests), desc="sampling", unit="step", total=total, disable=not progress, mininterval=every
        ):
            last = step
        assert last is not None, "there is at least one step"
        return last.latents

    @torch.no_grad()
    def steps(self, requests: Sequence[Request], before_block: Callable[[], None] = lambda: None) -> Iterator[Step]:
        """Yields the steps of `denoise` one at a time, so that callers can show them or stop between them.

        before_block: called before each block of the denoiser; an exception from it ends the work within a step.
        """
        first = requests[0]
        if not all(first.alike(request) for request in requests):
            raise ValueError("requests of a batch must have one size and one diffusion block")
        conditions, noise = self.encode(requests), self.noise(requests)
        diffusion, grid = first.model.diffusion, first.model.latent_grid
        sigmas = schedule.grid(diffusion, grid).to(self.residence.device)
        options = dataclasses.replace(self.options, guidance_mode=self.guidance_mode(first, len(requests)))
        with self.residence.using(self.denoiser):
            yield from steps(self.denoiser, noise, conditions, sigmas, diffusion, options, before_block)

    def encode(self, requests: Sequence[Request]) -> Conditions:
        """Conditions [B,...]; with guidance [2B,...], negative prompts first."""
        prompts = [request.texts for request in requests]
        negative = [prompt.negative for prompt in prompts] if requests[0].guided else []
        text = self.text(negative + [prompt.positive for prompt in prompts])
        known = self._known(requests)
        if known is not None and requests[0].guided:  # both halves see the images
            known = ImageFeatures.concatenate([known, known])
        return Conditions(text, known)

    def _known(self, requests: Sequence[Request]) -> ImageFeatures | None:
        """What the images of requests show [B,...]; None if no request has any."""
        if not any(request.model.images.files for request in requests):
            return None
        video, pixels = (torch.cat(parts) for parts in zip(*(images.load(one.model) for one in requests), strict=True))
        device, dtype = self.residence.device, self.autoencoder.dtype
        with self.residence.using(self.autoencoder):
            found = encode_known(self.autoencoder, video.to(device, dtype), pixels.to(device))
            return finish(self.autoencoder, found)

    def noise(self, requests: Sequence[Request]) -> Tensor:
        """Starting latents [B,C,T,H,W] in the encoders' precision; each depends on its request's seed and address
        alone.
        """
        shape = requests[0].model.latent_grid.shape(1, self.config.predictor.velocity_channels)
        draws = [
            torch.randn(shape, generator=generator(request.seed, "sample", *request.address)) for request in requests
        ]
        return torch.cat(draws).to(self.residence.device, TORCH_DTYPES[self.config.weight_dtype])

    def finished(self, requests: Sequence[Request], latents: Tensor) -> np.ndarray:
        """Videos uint8 [B,T,H,W,3] of clean latents; where requests ask for it, with their known pixels put back."""
        videos = self.decode(latents)
        for request, video in zip(requests, videos, strict=True):
            if request.model.keep_known_pixels and request.model.images.files:
                pixels, known = images.load(request.model)
                video[...] = np.where(known[0, ..., None].numpy() > 0, to_uint8(pixels)[0], video)
        return videos

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Clean latents [B,C,T,H,W] -> videos uint8 [B,T,H,W,3]."""
        with self.residence.using(self.autoencoder):
            video = self.autoencoder.decode(latents.to(self.autoencoder.dtype))
        self.denoiser.parallel.pulse.beat("decoding a video")
        if not torch.isfinite(video).all():
            reason = f"latents reach {latents.abs().max().item():.3g}"
            if video.dtype == torch.float16:
                reason = 'fp16 may be too narrow for its weights, try ae.dtype "bf16" or "fp32"'
            raise SamplingError(f"the autoencoder: its video is not finite; {reason}")
        return to_uint8(video)

    def preview(self, latents: Tensor) -> np.ndarray:
        """First frame [H,W,3] uint8 of latents [1,C,T,H,W]. Cheap, since a frame does not depend on later ones."""
        return self.decode(latents[:, :, :1])[0, 0]

    def guidance_mode(self, request: Request, batch: int) -> str:
        """Mode of guidance: "paired", "batched" or "sequential"; "none" without guidance."""
        if not request.guided:
            return "none"
        if self.denoiser.parallel.guidance_size > 1:
            return "paired"
        config, grid = self.config.predictor, request.model.latent_grid
        family = families.of_denoiser(config)
        activations = family.activation_bytes(
            config,
            family.extent(config, (grid.frames, grid.height, grid.width)),
            self.text.tokenizers[0].max_length,
            itemsize=self.denoiser.dtype.itemsize,
            ranks=token_parts(self.denoiser.parallel),
        )
        resident: list[nn.Module] = [self.denoiser]
        if not self.residence.offload:
            resident += [self.autoencoder] + ([self.text.encoders] if self.text.encoders else [])
        weights = sum(parameter.nbytes for module in resident for parameter in module.parameters())
        return decide_mode(self.options.guidance_mode, weights, activations, batch, self.memory_bytes)


def suited_to_weights(config: SampleConfig) -> SampleConfig:
    """A job with the steps and the guidance that its weights were distilled for, unless flags gave them."""
    weights = config.load or config.model.predictor.from_pretrained
    if weights is None:
        return config
    record = distilled_of(weights, [choice.path for choice in config.adapters])
    diffusion = suited(config.model.diffusion, record, config.fixed)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, diffusion=diffusion))


def to_uint8(video: Tensor) -> np.ndarray:
    """[B,3,T,H,W] in [-1,1] -> uint8 [B,T,H,W,3], rounded to the nearest."""
    pixels = (video.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).cpu().numpy()

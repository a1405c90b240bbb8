"""Open-Sora Plan v1.5 as a diffusers pipeline: the same prompts, noise, schedule and guidance as `T2VPipeline`."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.diffusers.code import PIPELINE, Code, add, carried
from mindspeed_mm.diffusers.images import TakesImages
from mindspeed_mm.diffusers.lora import OpenSoraPlanLoraMixin
from mindspeed_mm.diffusers.settings import checked
from mindspeed_mm.diffusers.text import EncodesPrompts, SamplingDefaults, repeated
from mindspeed_mm.diffusion import guidance, schedule
from mindspeed_mm.models.image_conditions import on_straight_path
from mindspeed_mm.models.sparse_ummdit.masks import used_columns, without_padding
from mindspeed_mm.parallel.seeds import generator as addressed_generator
from mindspeed_mm.types import ImageFeatures, TextFeatures

_NETWORKS = {"transformer": "SparseUMMDiTTransformer3DModel", "vae": "AutoencoderKLWFVAE"}


@dataclasses.dataclass
class OpenSoraPlanPipelineOutput(BaseOutput):
    """frames: what `output_type` asks for: lists of PIL images, np [B,T,H,W,3] or pt [B,T,3,H,W] in [0,1], or latents."""

    frames: Any


class OpenSoraPlanPipeline(DiffusionPipeline, OpenSoraPlanLoraMixin, EncodesPrompts, TakesImages):
    """Text, and images, to video: T5 and CLIP, `SparseUMMDiTTransformer3DModel`, a flow-match scheduler, `AutoencoderKLWFVAE`."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        tokenizer_2: Any,
        text_encoder_2: Any,
        transformer: Any,
        vae: Any,
        scheduler: Any,
        settings: dict[str, Any] | None = None,
    ):
        """settings: fields of `SamplingDefaults`."""
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            tokenizer_2=tokenizer_2,
            text_encoder_2=text_encoder_2,
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
        )
        self.defaults = checked(SamplingDefaults, dict(settings or {}))
        self.register_to_config(settings=dataclasses.asdict(self.defaults))
        self.video_processor = VideoProcessor(vae_scale_factor=8)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        image: Any = None,
        last_image: Any = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        sequential_guidance: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> OpenSoraPlanPipelineOutput | tuple[Any]:
        """Samples videos; docs/diffusers.md says what each argument does. Arguments that are None take `settings`."""
        said = self.defaults
        # A callback may change both; diffusers' own pipelines have these names.
        self._guidance_scale = said.guidance_scale if guidance_scale is None else guidance_scale
        self._guidance_rescale = said.guidance_rescale if guidance_rescale is None else guidance_rescale
        self._attention_kwargs, self._interrupt = attention_kwargs, False
        given = (prompt_embeds, prompt_attention_mask, pooled_prompt_embeds)
        unwanted = (negative_prompt_embeds, negative_prompt_attention_mask, negative_pooled_prompt_embeds)
        text, prompts = self._conditions(prompt, negative_prompt, given, unwanted, num_videos_per_prompt)
        first, last = self._images("image", image, prompts), self._images("last_image", last_image, prompts)
        if height is None and width is None:
            height, width = self._size_like([first, last], said.height, said.width)
        extent = (num_frames or said.num_frames, height or said.height, width or said.width)
        grid = self._grid(*extent)
        known = self.encode_images(first, last, extent, num_videos_per_prompt)
        latents = self.prepare_latents(grid, prompts, num_videos_per_prompt, generator, seed, latents)
        steps = num_inference_steps or said.num_inference_steps
        timesteps = self.prepare_timesteps(steps, sigmas, grid)
        callback = _callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        latents = self._denoise(latents, text, known, timesteps, 2 if sequential_guidance else 1, callback)
        frames = latents if output_type == "latent" else self.decode_latents(latents, output_type)
        self.maybe_free_model_hooks()
        return OpenSoraPlanPipelineOutput(frames=frames) if return_dict else (frames,)

    def _grid(self, frames: int, height: int, width: int) -> LatentGrid:
        """Latent extent of a video. Raises ConfigError for a size that does not fit the autoencoder or the patches."""
        patch = self.transformer.config.patch_size
        stride_t, stride_h, stride_w = self.vae.settings.strides
        LatentGrid.of_video(frames, height, width, (stride_t, patch * stride_h, patch * stride_w))
        return LatentGrid.of_video(frames, height, width, (stride_t, stride_h, stride_w))

    def _conditions(
        self, prompt: Any, negative_prompt: Any, given: tuple, unwanted: tuple, per_prompt: int
    ) -> tuple[TextFeatures, int]:
        """Text features [N,...], with guidance [2N,...], negative prompts first; and the number of prompts.

        given, unwanted: the three embeds of prompts and of negative prompts, instead of texts.
        """
        if (prompt is None) == (given[0] is None):
            raise ValueError("give prompt or prompt_embeds, and not both")
        if prompt is not None:
            features = self.encode_prompt(prompt, negative_prompt, self.do_classifier_free_guidance, per_prompt)
            given, unwanted, count = features[:3], features[3:], 1 if isinstance(prompt, str) else len(prompt)
            per_prompt = 1
        else:
            count = len(given[0])
        wanted = [given] if not self.do_classifier_free_guidance else [unwanted, given]
        if any(value is None for part in wanted for value in part):
            raise ValueError(
                "prompt_embeds: give embeds, attention mask and pooled embeds, with guidance negative ones too"
            )
        parts = [repeated(TextFeatures(part[0], part[1].bool(), part[2]), per_prompt) for part in wanted]
        return TextFeatures.concatenate(parts).to(self._execution_device, self.transformer.dtype), count

    def prepare_latents(
        self,
        grid: LatentGrid,
        prompts: int,
        per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
        seed: int | None,
        latents: Tensor | None,
    ) -> Tensor:
        """Starting latents [prompts * per_prompt, C, T, H, W] in the transformer's dtype.

        seed: draws what `T2VPipeline` draws for it, sample by sample; instead of `generator`.
        """
        shape = grid.shape(prompts * per_prompt, self.transformer.config.in_channels)
        device, dtype = self._execution_device, self.transformer.dtype
        if latents is not None:
            if tuple(latents.shape) != shape:
                raise ValueError(f"latents {list(latents.shape)}: need {list(shape)}")
            return latents.to(device, dtype)
        if seed is not None:
            addresses = [(prompt, sample) for prompt in range(prompts) for sample in range(per_prompt)]
            draws = [addressed_generator(seed, "sample", *address) for address in addresses]
            return torch.cat([torch.randn((1, *shape[1:]), generator=draw) for draw in draws]).to(device, dtype)
        # in fp32 whatever the dtype, so that one seed gives one noise
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    def prepare_timesteps(self, steps: int, sigmas: list[float] | None, grid: LatentGrid) -> Tensor:
        """Sets the scheduler's noise levels, from 1 to 0 unless `sigmas` are given; returns its timesteps."""
        if sigmas is None:
            linear = [float(sigma) for sigma in np.linspace(1.0, 0.0, steps + 1)]
            sigmas = (schedule.linear_quadratic(steps) if self.defaults.use_linear_quadratic_schedule else linear)[:-1]
        dynamic = self.scheduler.config.get("use_dynamic_shifting", False)
        shift = {"mu": math.log(schedule.dynamic_shift(grid))} if dynamic else {}
        self.scheduler.set_timesteps(sigmas=sigmas, device=self._execution_device, **shift)
        self._num_timesteps = len(self.scheduler.timesteps)
        return self.scheduler.timesteps

    def _denoise(
        self,
        latents: Tensor,
        text: TextFeatures,
        known: ImageFeatures | None,
        timesteps: Tensor,
        parts: int,
        callback: Any,
    ) -> Tensor:
        """Clean latents. parts: passes per step; callback: see `_callback`."""
        halves = text.chunk(parts if self.do_classifier_free_guidance else 1)
        progress: Any = self.progress_bar  # loses its self to diffusers' decorator in the eyes of a type checker
        with progress(total=len(timesteps)) as bar:
            for index, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = timestep
                velocity = self._velocity(latents, timestep, halves, known)
                if known is not None:
                    velocity = on_straight_path(velocity, latents, float(self.scheduler.sigmas[index]), known)
                latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
                if callback is not None:
                    latents, text = callback(self, index, timestep, latents, text)
                    halves = text.chunk(parts if self.do_classifier_free_guidance else 1)
                bar.update()
        self._current_timestep = None
        return latents

    def _velocity(
        self, latents: Tensor, timestep: Tensor, halves: list[TextFeatures], known: ImageFeatures | None
    ) -> Tensor:
        """Guided velocity; each half, or both at once, is one pass of the transformer."""
        contexts = ("uncond", "cond") if len(halves) == 2 else ("cond_uncond",)
        found = []
        for name, features in zip(contexts, halves, strict=True):
            features = without_padding(features, used_columns(features.keep, 1))
            count = features.sequence.shape[0]
            more = {} if bool(features.keep.all()) else {"encoder_attention_mask": features.keep}
            if known is not None:
                seen = torch.cat((known.latents, known.mask), 1).to(latents.dtype)
                more["image_condition"] = seen.repeat(count // latents.shape[0], 1, 1, 1, 1)
            with self.transformer.cache_context(name):
                found.append(
                    self.transformer(
                        hidden_states=latents.repeat(count // latents.shape[0], 1, 1, 1, 1),
                        timestep=timestep.expand(count),
                        encoder_hidden_states=features.sequence,
                        pooled_projections=features.pooled,
                        **more,
                        attention_kwargs=self.attention_kwargs,
                        return_dict=False,
                    )[0]
                )
        if not self.do_classifier_free_guidance:
            return found[0]
        without, with_prompt = torch.cat(found).chunk(2)
        return guidance.combine(without, with_prompt, self._guidance_scale, self._guidance_rescale)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor, output_type: str = "pil") -> Any:
        """Videos of clean latents [B,C,T,H,W]."""
        said = self.vae.config
        latents = latents.to(self.vae.dtype)
        if said.scale is not None:
            latents = latents / torch.tensor(said.scale).to(latents).view(1, -1, 1, 1, 1)
        if said.shift is not None:
            latents = latents + torch.tensor(said.shift).to(latents).view(1, -1, 1, 1, 1)
        return self.video_processor.postprocess_video(self.vae.decode(latents).sample.float(), output_type)

    @classmethod
    def from_pipe(cls, pipeline: Any, **options: Any) -> Any:
        """As diffusers', which hands a network over only if the constructor names its class: a folder's own code cannot."""
        found = {name: pipeline.components.get(name) for name in _NETWORKS}
        ours = {name: part for name, part in found.items() if type(part).__name__ == _NETWORKS[name]}
        return super().from_pipe(pipeline, **{**ours, **options})

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """As diffusers'. Raises ValueError for a CPU as the device that computes: diffusers calls it cpu:0, and there
        accelerate leaves plain tensors in the place of parameters, which end the first text in a TypeError.
        """
        if device is not None and torch.device(device).type == "cpu":
            raise ValueError(
                f"enable_sequential_cpu_offload: device {device}; it offloads to the CPU, name an accelerator"
            )
        super().enable_sequential_cpu_offload(gpu_id, device)  # pyright: ignore[reportArgumentType]

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **options: Any) -> None:
        """Also writes the code of the pipeline's own classes, so that the folder loads without this package."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **options)
        add(Path(save_directory), self._code())

    def _code(self) -> Code:
        return carried({PIPELINE: self, "transformer": self.transformer, "vae": self.vae})

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        return self._attention_kwargs

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        return self._interrupt


def _callback(function: Callable | None, names: Sequence[str], known: list[str]) -> Callable | None:
    """diffusers' callback as a function of pipeline, step, timestep, latents and text, which returns the last two."""
    if function is None:
        return None
    names = list(getattr(function, "tensor_inputs", names))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"callback_on_step_end_tensor_inputs {unknown}: not among {known}")

    def call(pipeline: Any, index: int, timestep: Tensor, latents: Tensor, text: TextFeatures):
        guided = pipeline.do_classifier_free_guidance
        parts = text.chunk(2 if guided else 1)
        values = {"latents": latents, "prompt_embeds": parts[-1].sequence, "negative_prompt_embeds": parts[0].sequence}
        changed = function(pipeline, index, timestep, {name: values[name] for name in names}) or {}
        if pipeline.do_classifier_free_guidance and not guided:
            raise ValueError(
                "a callback turned guidance on; start with guidance_scale above 1, which reads both prompts"
            )
        places = {"negative_prompt_embeds": parts[0], "prompt_embeds": parts[-1]}
        new = [dataclasses.replace(part, sequence=changed.get(name, part.sequence)) for name, part in places.items()]
        kept = new if pipeline.do_classifier_free_guidance else new[1:]  # a callback may turn guidance off
        return changed.get("latents", latents), TextFeatures.concatenate(kept)

    return call

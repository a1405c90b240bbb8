"""A pipeline of random networks, with stand-ins for the text encoders, which need files."""

import dataclasses
import zlib
from types import SimpleNamespace

import torch
from rank_runs import FOUR_BLOCKS
from small_vae import TINY_8

from mindspeed_mm.config.model import DiffusionConfig, TextEncoderConfig, TokenizerConfig
from mindspeed_mm.config.sample import PipelineConfig, SampleModelConfig, SamplingOptions
from mindspeed_mm.models.build import build_autoencoder, build_denoiser
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.residence import Residence
from mindspeed_mm.types import TextFeatures

TEXT_TOKENS = 8
AUTOENCODER = dataclasses.replace(TINY_8, scale=None, shift=None, use_tiling=False)


class MadeUpText:
    """Features that depend on each text alone; called as a PromptEncoder."""

    encoders = None
    tokenizers = (SimpleNamespace(max_length=TEXT_TOKENS),)

    def __call__(self, texts) -> TextFeatures:
        return TextFeatures.concatenate([self._features(text) for text in texts])

    def _features(self, text: str) -> TextFeatures:
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        keep = torch.arange(TEXT_TOKENS)[None] < 3 + len(text) % 5
        return TextFeatures(
            torch.randn(1, TEXT_TOKENS, 12, generator=generator), keep, torch.randn(1, 6, generator=generator)
        )


def sample_model(size=(9, 64, 64), predictor=FOUR_BLOCKS, **diffusion) -> SampleModelConfig:
    nowhere = {"from_pretrained": "nowhere"}
    return SampleModelConfig(
        ae=AUTOENCODER,
        text_encoder=TextEncoderConfig(model_id="T5", **nowhere),
        text_encoder_2=TextEncoderConfig(model_id="CLIPWithProjection", **nowhere),
        tokenizer=TokenizerConfig(**nowhere),
        tokenizer_2=TokenizerConfig(**nowhere),
        predictor=predictor,
        diffusion=DiffusionConfig(**{"num_inference_steps": 4, "guidance_scale": 3.0, "shift": 3.0, **diffusion}),
        pipeline_config=PipelineConfig(input_size=size),
        prompt="a red circle",
        weight_dtype="fp32",
    )


IMAGES = dataclasses.replace(FOUR_BLOCKS, image_mask_channels=8)


def pipeline(
    parallel=None, size=(9, 64, 64), options: SamplingOptions | None = None, predictor=FOUR_BLOCKS, **diffusion
) -> T2VPipeline:
    """The same networks at every layout, on the CPU. predictor: IMAGES has inputs for images, which are not zero."""
    torch.manual_seed(0)
    denoiser = build_denoiser(predictor, parallel or ParallelContext.current(), seed=1)
    if denoiser.image_embed is not None:
        torch.nn.init.normal_(denoiser.image_embed.proj.weight, 0.0, 0.1, torch.Generator().manual_seed(2))
    residence = Residence(torch.device("cpu"))
    config = sample_model(size, predictor, **diffusion)
    return T2VPipeline(config, denoiser, build_autoencoder(AUTOENCODER), MadeUpText(), residence, options)

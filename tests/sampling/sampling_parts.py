"""A pipeline of random networks, with stand-ins for the text encoders, which need files."""

import zlib
from types import SimpleNamespace

import torch
from rank_runs import DENOISER

from mindspeed_mm.config.model import AutoencoderConfig, DiffusionConfig, TextEncoderConfig, TokenizerConfig
from mindspeed_mm.config.sample import PipelineConfig, SampleModelConfig, SamplingOptions
from mindspeed_mm.models.build import build_autoencoder, build_denoiser
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.residence import Residence
from mindspeed_mm.types import TextFeatures

TEXT_TOKENS = 8
AUTOENCODER = AutoencoderConfig(
    base_channels=8,
    latent_dim=4,
    encoder_num_resblocks=1,
    encoder_energy_flow_hidden_size=8,
    decoder_num_resblocks=1,
    decoder_energy_flow_hidden_size=8,
    connect_res_layer_num=1,
    norm_type="layernorm",
    t_interpolation="trilinear",
    l1_downsample_block="Spatial2xTime2x3DDownsample",
    l1_downsample_wavelet="HaarWaveletTransform3D",
    l1_upsample_block="Spatial2xTime2x3DUpsample",
    l1_upsample_wavelet="InverseHaarWaveletTransform3D",
)


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


def sample_model(size=(9, 64, 64), **diffusion) -> SampleModelConfig:
    nowhere = {"from_pretrained": "nowhere"}
    return SampleModelConfig(
        ae=AUTOENCODER,
        text_encoder=TextEncoderConfig(model_id="T5", **nowhere),
        text_encoder_2=TextEncoderConfig(model_id="CLIPWithProjection", **nowhere),
        tokenizer=TokenizerConfig(**nowhere),
        tokenizer_2=TokenizerConfig(**nowhere),
        predictor=DENOISER,
        diffusion=DiffusionConfig(**{"num_inference_steps": 4, "guidance_scale": 3.0, "shift": 3.0, **diffusion}),
        pipeline_config=PipelineConfig(input_size=size),
        prompt="a red circle",
        weight_dtype="fp32",
    )


def pipeline(parallel=None, size=(9, 64, 64), options: SamplingOptions | None = None, **diffusion) -> T2VPipeline:
    """The same networks at every layout, on the CPU."""
    torch.manual_seed(0)
    denoiser = build_denoiser(DENOISER, parallel or ParallelContext.current(), seed=1)
    residence = Residence(torch.device("cpu"))
    config = sample_model(size, **diffusion)
    return T2VPipeline(config, denoiser, build_autoencoder(AUTOENCODER), MadeUpText(), residence, options)

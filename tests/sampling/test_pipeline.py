"""The sampling pipeline, with random networks: layouts, guidance, seeds and failures."""

import numpy as np
import pytest
import torch
from rank_runs import DENOISER
from ranks import run_ranks

from mindspeed_mm.config.model import AutoencoderConfig, DiffusionConfig, TextEncoderConfig, TokenizerConfig
from mindspeed_mm.config.sample import PipelineConfig, SampleModelConfig
from mindspeed_mm.errors import SamplingError
from mindspeed_mm.models.build import build_autoencoder, build_denoiser
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.sampling.pipeline import T2VPipeline, to_uint8
from mindspeed_mm.types import TextFeatures

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


def pipeline(parallel=None, size=(9, 64, 64), **diffusion) -> T2VPipeline:
    """A pipeline whose text encoders are never called."""
    nowhere = {"from_pretrained": "nowhere"}
    config = SampleModelConfig(
        ae=AUTOENCODER,
        text_encoder=TextEncoderConfig(model_id="T5", **nowhere),
        text_encoder_2=TextEncoderConfig(model_id="CLIPWithProjection", **nowhere),
        tokenizer=TokenizerConfig(**nowhere),
        tokenizer_2=TokenizerConfig(**nowhere),
        predictor=DENOISER,
        diffusion=DiffusionConfig(**{"num_inference_steps": 4, "guidance_scale": 3.0, "shift": 3.0, **diffusion}),
        pipeline_config=PipelineConfig(input_size=size),
        weight_dtype="fp32",
    )
    torch.manual_seed(0)
    denoiser = build_denoiser(DENOISER, parallel or ParallelContext.current(), seed=1)
    return T2VPipeline(config, denoiser, build_autoencoder(AUTOENCODER), None, (None, None), torch.device("cpu"))


def text(batch=2) -> TextFeatures:
    generator = torch.Generator().manual_seed(3)
    keep = torch.arange(8)[None] < torch.arange(3, 3 + batch)[:, None]
    return TextFeatures(
        torch.randn(batch, 8, 12, generator=generator), keep, torch.randn(batch, 6, generator=generator)
    )


def latents_at(tensor_size: int, context_size: int, sequence_parallel: bool) -> np.ndarray:
    parallel = ParallelContext.start(
        tensor_size=tensor_size, context_size=context_size, sequence_parallel=sequence_parallel
    )
    pipe = pipeline(parallel)
    with torch.no_grad():
        return pipe.denoise(pipe.noise(7, [(0, 0)]), text(), progress=False).numpy()


@pytest.mark.parametrize("layout", [(2, 1, False), (2, 1, True), (1, 2, False), (1, 1, False)], ids=str)
def test_a_seed_gives_the_same_latents_at_every_layout(layout):
    pipe = pipeline()
    with torch.no_grad():
        one = pipe.denoise(pipe.noise(7, [(0, 0)]), text(), progress=False).numpy()
    for found in run_ranks(latents_at, 2, *layout):
        assert np.abs(found - one).max() < 1e-4


def test_noise_belongs_to_the_prompt_and_the_sample_not_to_the_batch():
    pipe = pipeline()
    both = pipe.noise(1, [(0, 0), (5, 1)])
    assert torch.equal(both[1:], pipe.noise(1, [(5, 1)]))
    others = [pipe.noise(1, [(5, 0)]), pipe.noise(1, [(4, 1)]), pipe.noise(2, [(5, 1)])]
    assert all(not torch.equal(both[1:], other) for other in others)


def test_guidance_pushes_away_from_the_negative_prompt():
    """Guided velocity = without + scale (with - without), of the two halves of one batch."""
    pipe = pipeline(guidance_rescale=0.0)
    features, latents, sigma = text(), pipe.noise(0, [(0, 0)]), torch.tensor(0.6)
    with torch.no_grad():
        guided = pipe._velocity(latents, sigma, features)
        halves = [
            pipe.denoiser(
                latents,
                sigma[None],
                TextFeatures(features.sequence[i : i + 1], features.keep[i : i + 1], features.pooled[i : i + 1]),
            )
            for i in (0, 1)
        ]
    assert torch.allclose(guided, halves[0] + 3.0 * (halves[1] - halves[0]), atol=1e-5)


def test_without_guidance_one_half_is_enough():
    pipe = pipeline(guidance_scale=1.0)
    assert not pipe.guided
    with torch.no_grad():
        assert pipe.denoise(pipe.noise(0, [(0, 0)]), text(1), progress=False).shape == (1, 4, 2, 8, 8)


def test_a_velocity_that_is_not_finite_is_named_with_its_step():
    pipe = pipeline()
    with torch.no_grad():
        pipe.denoiser.proj_out.bias.fill_(float("nan"))
    with pytest.raises(SamplingError, match=r"step 1 of 4 \(sigma 1.0000\): the velocity is not finite"):
        pipe.denoise(pipe.noise(0, [(0, 0)]), text(), progress=False)


def test_pixels_are_rounded_and_clamped():
    video = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.25, 0.999, 1.0, 3.0]).view(1, 1, 1, 1, 8).expand(1, 3, 1, 1, 8)
    assert to_uint8(video)[0, 0, 0, :, 0].tolist() == [0, 0, 64, 128, 159, 255, 255, 255]


def test_an_image_is_a_video_of_one_frame():
    pipe = pipeline(size=(1, 32, 32))
    assert pipe.noise(0, [(0, 0)]).shape == (1, 4, 1, 4, 4)
    with torch.no_grad():
        latents = pipe.denoise(pipe.noise(0, [(0, 0)]), text(), progress=False)
        assert to_uint8(pipe.autoencoder.decode(latents)).shape == (1, 1, 32, 32, 3)

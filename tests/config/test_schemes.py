"""A name that a config may hold has a function: each choice is a key of the table that acts on it."""

import dataclasses

import pytest
import torch

from mindspeed_mm.config import data, model, noise, optimizer, run, sample, transforms
from mindspeed_mm.config.autoencoder import DISTANCES, AutoencoderLossConfig
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.guidance_rules import RULES
from mindspeed_mm.config.launch import LaunchConfig
from mindspeed_mm.config.solvers import SOLVERS
from mindspeed_mm.data.decode import readers
from mindspeed_mm.data.decode import transforms as planners
from mindspeed_mm.diffusion import flow, schedule
from mindspeed_mm.families import AUTOENCODERS, DENOISERS
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.families.text_encoders import TEXT_ENCODERS
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.sparse_ummdit.block import GELUS
from mindspeed_mm.models.sparse_ummdit.modulation import NORMS
from mindspeed_mm.models.wfvae import layers
from mindspeed_mm.models.wfvae.decoder import UPSAMPLES
from mindspeed_mm.models.wfvae.encoder import DOWNSAMPLES
from mindspeed_mm.platforms.select import PLATFORMS
from mindspeed_mm.sampling.denoise import PARTS
from mindspeed_mm.schema.fields import facts_of
from mindspeed_mm.types import TORCH_DTYPES


def choices(cls, name: str) -> set:
    return set(next(facts_of(field).choices for field in dataclasses.fields(cls) if field.name == name))


@pytest.mark.parametrize(
    ("cls", "name", "table"),
    [
        (model.DiffusionConfig, "weighting_scheme", noise.WEIGHTINGS),
        (model.DiffusionConfig, "solver", SOLVERS),
        (model.DiffusionConfig, "guidance_rule", RULES),
        (sample.PromptConfig, "solver", SOLVERS),
        (SparseUMMDiTConfig, "model_id", DENOISERS),
        (SparseUMMDiTConfig, "activation_fn", GELUS),
        (SparseUMMDiTConfig, "norm_cls", NORMS),
        (WFVAEConfig, "model_id", AUTOENCODERS),
        (WFVAEConfig, "norm_type", layers.NORMS),
        (WFVAEConfig, "l1_downsample_block", DOWNSAMPLES),
        (WFVAEConfig, "l1_upsample_block", UPSAMPLES),
        (WFVAEConfig, "dtype", TORCH_DTYPES),
        (model.TextEncoderConfig, "model_id", TEXT_ENCODERS),
        (model.TrainModelConfig, "weight_dtype", TORCH_DTYPES),
        (sample.SampleModelConfig, "weight_dtype", TORCH_DTYPES),
        (optimizer.OptimizerSettings, "selection", optimizer.OPTIMIZERS),
        (AutoencoderLossConfig, "distance", DISTANCES),
    ],
)
def test_the_choices_are_the_keys(cls, name, table):
    assert choices(cls, name) == set(table)


def test_the_choices_with_a_default_of_their_own():
    assert choices(LaunchConfig, "device") == {"auto", *PLATFORMS}
    assert choices(sample.SamplingOptions, "guidance_mode") == {"auto", *PARTS}
    assert set(data.VIDEO_READERS) == set(readers.READERS)
    assert set(transforms.TRANSFORMS.values()) == set(planners.PLANNERS)
    assert choices(run.CheckpointConfig, "format") == {"torch", "torch_dist"}


def test_every_scheme_of_noise_levels_draws_or_weights_in_a_way_of_its_own():
    """A name added to the table with another's row would be found here; one that is in no table cannot be chosen."""
    grid, sigma, seen = LatentGrid(3, 8, 8), torch.linspace(0.1, 0.9, 16), set()
    for name in noise.WEIGHTINGS:
        config = model.DiffusionConfig(weighting_scheme=name)
        drawn = schedule.draw(config, grid, 16, torch.Generator().manual_seed(1))
        seen.add((tuple(drawn.tolist()), tuple(flow.loss_weight(sigma, config).tolist())))
    assert len(seen) == len(noise.WEIGHTINGS)


def test_megatron_knows_every_decay_and_each_is_another():
    from mindspeed_mm.parallel.megatron import OptimizerParamScheduler

    curves = set()
    for style in optimizer.LR_DECAY_STYLES:
        weights = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = OptimizerParamScheduler(
            weights,
            init_lr=0.0,
            max_lr=1.0,
            min_lr=0.0,
            lr_warmup_steps=2,
            lr_decay_steps=10,
            lr_decay_style=style,
            start_wd=0.0,
            end_wd=0.0,
            wd_incr_steps=10,
            wd_incr_style="constant",
        )
        rates = []
        for _ in range(8):
            scheduler.step(1)
            rates.append(round(weights.param_groups[0]["lr"], 9))
        curves.add(tuple(rates))
    assert len(curves) == len(optimizer.LR_DECAY_STYLES)

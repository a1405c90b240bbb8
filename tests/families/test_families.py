"""What a family says of its network without tensors is what the network has."""

import dataclasses
import json
import math

import pytest
import torch
from denoiser_cases import CASES, Case

from mindspeed_mm import families
from mindspeed_mm.families import sparse_ummdit, wfvae
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.build import build_autoencoder, build_denoiser
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.partition import partition_dims

V1_5 = SparseUMMDiTConfig(
    num_layers=(2, 4, 6, 8, 6, 4, 2),
    sparse_n=(1, 2, 4, 8, 4, 2, 1),
    sparse1d=True,
    double_ff=True,
    num_heads=24,
    head_dim=128,
    in_channels=32,
    timestep_embed_dim=1024,
    caption_channels=2048,
    pooled_projection_dim=1280,
    skip_connection=True,
)


def assert_is(network: torch.nn.Module, found: dict) -> None:
    assert list(found) == [name for name, _ in network.named_parameters()]
    assert {name: fact.shape for name, fact in found.items()} == {
        name: tuple(value.shape) for name, value in network.named_parameters()
    }


@pytest.mark.parametrize("case", CASES)
def test_a_denoisers_parameters_are_the_networks(golden, case):
    config = Case.read(golden(f"predictor/{case}.safetensors")).config
    network = build_denoiser(config, ParallelContext.current(), device="meta", seed=None)
    found = sparse_ummdit.parameters(config)
    assert_is(network, found)
    assert {name: fact.dim for name, fact in found.items()} == partition_dims(network)
    assert {name: sparse_ummdit.split(name) for name in found} == partition_dims(network)


@pytest.mark.parametrize("tensor_size", [1, 2, 4, 8])
def test_the_full_size_has_the_originals_names_and_shapes_on_every_tp_rank(golden, tensor_size):
    table = json.loads(golden("predictor/shapes_full_v1_5.json").read_text())
    wanted = table["tp1" if tensor_size == 1 else f"tp{tensor_size}_rank0"]
    found = {
        name: [size // tensor_size if axis == fact.dim else size for axis, size in enumerate(fact.shape)]
        for name, fact in sparse_ummdit.parameters(V1_5).items()
    }
    wanted = {name: shape for name, shape in wanted.items() if shape is not None}
    tail = sparse_ummdit.text_tail(wanted) if tensor_size > 1 else set()
    assert found == {name: shape for name, shape in wanted.items() if name not in tail}


def test_the_full_size_has_the_reports_number_of_parameters():
    found = sparse_ummdit.parameters(V1_5)
    assert (len(found), sum(math.prod(fact.shape) for fact in found.values())) == (1178, 8_504_661_120)


@pytest.mark.parametrize(
    "more",
    [
        {"norm_type": "layernorm"},
        {"base_channels": 64, "encoder_energy_flow_hidden_size": 64},
        {"norm_type": "layernorm", "use_attention": False, "connect_res_layer_num": 1, "encoder_num_resblocks": 1},
        {
            "norm_type": "layernorm",
            "l1_downsample_block": "Spatial2xTime2x3DDownsample",
            "l1_downsample_wavelet": "HaarWaveletTransform3D",
            "l1_upsample_block": "Spatial2xTime2x3DUpsample",
            "l1_upsample_wavelet": "InverseHaarWaveletTransform3D",
        },
    ],
)
def test_an_autoencoders_tensors_are_the_networks(more):
    config = WFVAEConfig(**more)
    state = build_autoencoder(config, device="meta").state_dict()
    found = wfvae.parameters(config)
    assert {name: fact.shape for name, fact in found.items()} == {name: tuple(v.shape) for name, v in state.items()}
    assert list(found) == list(state)


def test_names_tell_family_and_dialect():
    family, dialect = families.of_names(["transformer_blocks.0.0.attn1.proj_q.weight"])
    assert (family.model_id, dialect.name) == ("SparseUMMDiT", "MM")
    assert dialect.renaming.to_ours("transformer_blocks.1.2.attn1.proj_out.bias") == (
        "transformer_blocks.1.2.attn1.to_out.0.bias"
    )
    assert dialect.renaming.to_theirs("proj_out.weight") == "proj_out.weight"
    assert families.of_names(["encoder.down1.0.weight"])[0].model_id == "wfvae"
    assert families.of_names(["encoder.layer.0.weight"]) is None


def test_what_weights_say_is_what_their_config_says():
    family = families.DENOISERS["SparseUMMDiT"]
    assert family.differences(family.describe_config(V1_5), V1_5) == ""
    other = dataclasses.replace(V1_5, num_heads=12, double_ff=False)
    assert family.differences(family.describe_config(V1_5), other) == (
        "num_heads is 24 by the weights, 12 in the config; double_ff is True by the weights, False in the config"
    )


@pytest.mark.parametrize("lost", ["transformer_blocks.3.5.ff.net.2.weight", "skip_norm_linear.1.1.bias"])
def test_weights_that_lack_a_parameter_are_told_by_their_other_names(lost):
    family = families.DENOISERS["SparseUMMDiT"]
    shapes = {name: fact.shape for name, fact in sparse_ummdit.parameters(V1_5).items()}
    assert family.missing(shapes, shapes.__getitem__) == []
    del shapes[lost]
    assert family.missing(shapes, shapes.__getitem__) == [lost]


def test_a_parameters_split_is_known_from_its_name_at_any_size():
    wanted = {
        "transformer_blocks.5.3.attn1.to_q.weight": 0,
        "transformer_blocks.5.13.attn1.add_v_proj.bias": 0,
        "transformer_blocks.5.3.attn1.to_out.0.weight": 1,
        "transformer_blocks.5.3.attn1.to_out.0.bias": None,
        "transformer_blocks.5.3.attn1.norm_q.weight": None,
        "transformer_blocks.15.3.ff_enc.net.0.proj.weight": 0,
        "transformer_blocks.5.3.ff.net.2.weight": 1,
        "transformer_blocks.5.3.norm1.linear.bias": 0,
        "norm_out.linear.weight": 0,
        "skip_norm_linear.2.1.weight": None,
        "skip_norm_linear_enc.2.0.bias": None,
        "proj_out.weight": None,
    }
    assert {name: sparse_ummdit.split(name) for name in wanted} == wanted
    with pytest.raises(KeyError):
        sparse_ummdit.split("layers.0.weight")

"""SparseUMMDiT against the original's numbers, fp32 on the CPU: outputs 2e-5, gradients 1e-4 of the largest."""

import dataclasses
import json
import math

import pytest
import torch
from denoiser_cases import CASES, GRADIENT, OUTPUT, Case, relative, run, train_gradients
from safetensors import safe_open
from safetensors.torch import load_file

import mindspeed_mm as mm
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.ops import rope3d
from mindspeed_mm.parallel.context import ParallelContext

UNIFORM_ROPE_OFFSET = (1, 4, 2)  # what random.seed(3) gave the original in case l


def read(golden, name: str) -> Case:
    case = Case.read(golden(f"predictor/{name}.safetensors"))
    if name == "j_rope_scale_square":
        # The original's table cache forgot the scale: with equal extents w was served h's table. With h's scale for w
        # our tables must give its numbers; test_each_rope_axis_has_its_own_scale shows that ours keep them apart.
        case.config = dataclasses.replace(case.config, interpolation_scale_w=case.config.interpolation_scale_h)
    return case


@pytest.mark.parametrize("name", CASES)
def test_evaluation_output(golden, name):
    case = read(golden, name)
    with torch.no_grad():
        out = run(case.network(ParallelContext.current()).eval(), case.inputs())
    assert (out - case.tensors["out"]).abs().max() < OUTPUT


@pytest.mark.parametrize("name", CASES)
def test_training_output_and_gradients(golden, name):
    case = read(golden, name)
    offset = UNIFORM_ROPE_OFFSET if name == "l_uniform_rope" else None
    network = case.network(ParallelContext.current())
    out, loss, parameters, inputs = train_gradients(case, network, offset)
    assert (out - case.tensors["out_train"]).abs().max() < OUTPUT
    assert abs(loss - case.tensors["loss"]).item() < 1e-6
    for key, wanted in case.tensors.items():
        if key.startswith("g."):
            assert relative(parameters[key[2:]], wanted) < GRADIENT, key
        if key.startswith("gin."):
            assert relative(inputs[key[4:]], wanted) < GRADIENT, key
    norms = case.meta["grad_l2_and_sum"]
    assert set(norms) == {name for name, gradient in parameters.items() if gradient is not None}
    for key, (norm, _) in norms.items():
        assert math.isclose(parameters[key].norm().item(), norm, rel_tol=1e-4, abs_tol=1e-7), key


@pytest.mark.parametrize("options", [{"recompute_blocks": 3}, {"recompute_feed_forwards": 6}])
def test_recomputation_changes_no_bit(golden, options):
    case = read(golden, "b_5stage_notdiv_vmask")
    parallel = ParallelContext.current()
    plain = train_gradients(case, case.network(parallel))
    recomputed = train_gradients(case, case.network(parallel, **options))
    assert torch.equal(plain[0], recomputed[0])
    assert all(torch.equal(gradient, recomputed[2][name]) for name, gradient in plain[2].items())


def test_a_single_stage_is_refused(golden):
    with pytest.raises(ConfigError, match="1 stages; a U shape needs an odd number, at least 3"):
        Case.read(golden("predictor/p_single_stage_runs_twice.safetensors"))


def test_rope_tables_and_rotation(golden):
    path = golden("predictor/rope3d.safetensors")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
    checked = 0
    for name, case in meta.items():
        if not isinstance(case, dict) or name == "d16_scale_hw_equal_cachebug":
            continue
        extent = (case["t"], case["h"], case["w"])
        scale = tuple(case["interpolation_scale_thw"])
        cos, sin = rope3d.tables(extent, case["head_dim"], scale, tuple(case["min_poses"]))
        wanted_cos = torch.cat([tensors[f"{name}.cos_{axis}"] for axis in "tyx"], dim=-1)
        wanted_sin = torch.cat([tensors[f"{name}.sin_{axis}"] for axis in "tyx"], dim=-1)
        assert (cos[:, 0, 0] - wanted_cos).abs().max() < 1e-6
        assert (sin[:, 0, 0] - wanted_sin).abs().max() < 1e-6
        assert (rope3d.rotate(tensors[f"{name}.x"], cos, sin) - tensors[f"{name}.out"]).abs().max() < 2e-6
        checked += 1
    assert checked == 6


def test_rope_in_bf16_is_computed_in_fp32(golden):
    tensors = load_file(golden("predictor/rope3d.safetensors"))
    cos, sin = rope3d.tables((2, 3, 4), 16)
    out = rope3d.rotate(tensors["d16.x"].bfloat16(), cos, sin)
    assert out.dtype == torch.bfloat16
    assert (out.float() - tensors["d16.out_bf16"].float()).abs().max() <= 2**-7  # one step of bf16 at 1


def test_each_rope_axis_has_its_own_scale():
    cos, _ = rope3d.tables((3, 4, 4), 16, scale=(1.5, 2.0, 0.5))
    h_part, w_part = cos.view(3, 4, 4, 16)[0, :, 0, 4:10], cos.view(3, 4, 4, 16)[0, 0, :, 10:16]
    assert (h_part - w_part).abs().max() > 0.1


def test_default_initial_values(golden):
    """Spread and extremes of fresh weights, by kind of parameter, as the original's defaults."""
    wanted = json.loads(golden("predictor/init_stats.json").read_text())
    config = Case.read(golden("predictor/a_base_4x16_div.safetensors")).config
    config = dataclasses.replace(config, timestep_embed_dim=64)  # of the network that was measured
    network = build_denoiser(config, ParallelContext.current(), seed=3)
    groups: dict[str, list] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault(".".join(part for part in name.split(".") if not part.isdigit()), []).append(parameter)
    assert set(wanted) <= set(groups)
    for name, statistics in wanted.items():
        values = torch.cat([parameter.flatten() for parameter in groups[name]])
        tolerance = 0.02 if values.numel() > 10_000 else 0.35  # small tensors scatter
        assert math.isclose(values.std().item(), statistics["std"], rel_tol=tolerance, abs_tol=1e-6), name
        assert values.abs().max() <= 1.35 * statistics["absmax"] + 1e-6, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": (2, 2)}, "odd number"),
        ({"num_layers": (2, 3, 2)}, "even number of blocks"),
        ({"sparse_n": (1, 2)}, "2 entries for 3 stages"),
        ({"head_dim": 24}, "not a multiple of 16"),
        ({"patch_size_t": 2}, "runs with 1 only"),
        ({"explicit_uniform_rope": True}, "needs sample_size_t"),
    ],
)
def test_impossible_configs_name_the_value(change, message):
    base = {"num_layers": (2, 2, 2), "sparse_n": (1, 2, 1), "num_heads": 1, "head_dim": 16, "in_channels": 4}
    with pytest.raises(ConfigError, match=message):
        mm.build_denoiser(SparseUMMDiTConfig(**{**base, "caption_channels": 8, **change}))

"""Products in float8: every layout of TP computes what one rank computes, and a network learns with them."""

import dataclasses

import pytest
import torch
from denoiser_cases import Case
from rank_runs import Layout, curve
from ranks import run_ranks
from test_parallel_parity import GRADIENT, OUTPUT, computed

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.models.float8 import use_float8
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.partition import partition_dims, shard

CASE = "predictor/a_base_4x16_div.safetensors"


def results(path, form: str | None, parallel: ParallelContext):
    """Output in evaluation and in training, and the network with its gradients."""
    case = Case.read(path)
    network = case.network(parallel)
    if form is not None:
        assert use_float8(network, form, parallel) > 20
    return *computed(case, network, parallel), network


def of_one_rank(path, form: str | None) -> dict[str, torch.Tensor]:
    evaluation, out, network = results(path, form, ParallelContext.start())
    gradients = {name: parameter.main_grad.clone() for name, parameter in network.named_parameters()}
    return {"evaluation": evaluation, "training": out, **gradients}


def differences(path, form: str, wanted: dict[str, torch.Tensor], sequence_parallel: bool) -> dict[str, float]:
    """Largest differences from one rank: of outputs, and of gradients relative to each one's largest number."""
    parallel = ParallelContext.start(tensor_size=2, sequence_parallel=sequence_parallel)
    evaluation, out, network = results(path, form, parallel)
    found = {
        "evaluation": (evaluation - wanted["evaluation"]).abs().max().item(),
        "training": (out - wanted["training"]).abs().max().item(),
    }
    dims = partition_dims(network)
    for name, parameter in network.named_parameters():
        whole = wanted[name]
        part = shard(whole, dims[name], parallel)
        found[name] = ((parameter.main_grad - part).abs().max() / whole.abs().max().clamp_min(1e-9)).item()
    return found


@pytest.mark.parametrize(("form", "sequence_parallel"), [("e4m3", False), ("hybrid", True)])
def test_layout_equals_one_rank(golden, form, sequence_parallel):
    path = golden(CASE)
    wanted = run_ranks(of_one_rank, 1, path, form)[0]
    exact = run_ranks(of_one_rank, 1, path, None)[0]
    assert (wanted["training"] - exact["training"]).abs().max() > 10 * OUTPUT  # float8 was at work
    for found in run_ranks(differences, 2, path, form, wanted, sequence_parallel):
        assert len(found) > 20
        for key, value in found.items():
            assert value < (OUTPUT if key in ("evaluation", "training") else GRADIENT), key


def test_sizes_that_kernels_do_not_take_are_refused(golden):
    parallel = ParallelContext.current()
    config = dataclasses.replace(Case.read(golden(CASE)).config, head_dim=12, num_heads=2)
    network = build_denoiser(config, parallel, device="meta", seed=None)
    with pytest.raises(
        ConfigError, match=r"--fp8-format: .*to_q has 24 inputs and 24 outputs on a rank of TP 1.*multiples of 16"
    ):
        use_float8(network, "e4m3", parallel)


FORMS = {None: Layout(micro_batch=4), "hybrid": Layout(micro_batch=4, fp8_format="hybrid", recompute_blocks=1)}


def test_a_network_learns_as_without():
    curves = [[loss for loss, _ in run_ranks(curve, 1, layout, 20)[0]] for layout in FORMS.values()]
    plain, rounded = map(torch.tensor, curves)
    assert plain[10:].mean() < 0.9 * plain[0]  # it learns
    assert not torch.equal(plain, rounded)
    torch.testing.assert_close(rounded, plain, rtol=0.01, atol=0)

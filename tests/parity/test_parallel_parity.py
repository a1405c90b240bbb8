"""The layouts against the original's one-rank numbers: TP, sequence parallel and Ulysses CP on gloo ranks."""

import pytest
import torch
from denoiser_cases import Case, relative, run, train_gradients
from ranks import run_ranks

from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.megatron_engine import MegatronEngine
from mindspeed_mm.parallel.partition import partition_dims, shard
from mindspeed_mm.platforms.cpu import CpuPlatform

OUTPUT, GRADIENT = 1e-5, 1e-4


def computed(case: Case, network, parallel: ParallelContext) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs in evaluation and in training; leaves the gradients in `main_grad`."""
    with torch.no_grad():
        evaluation = run(network.eval(), case.inputs())
    settings = OptimizerSettings(lr_decay_iters=1, use_distributed_optimizer=False)
    engine = MegatronEngine(network, parallel, CpuPlatform(), settings)
    engine.start_step()
    out, *_ = train_gradients(case, engine.ddp)
    engine.finish_gradients()
    return evaluation, out.detach()


def differences(
    path, tensor_size: int, context_size: int, sequence_parallel: bool, share_memory: bool
) -> dict[str, float]:
    """Largest differences of this rank's output and gradients from the golden ones; runs on every rank."""
    parallel = ParallelContext.start(
        tensor_size=tensor_size,
        context_size=context_size,
        sequence_parallel=sequence_parallel,
        share_memory=share_memory,
    )
    assert parallel.data_size == 1
    case = Case.read(path)
    network = case.network(parallel)
    evaluation, out = computed(case, network, parallel)
    found = {
        "evaluation": (evaluation - case.tensors["out"]).abs().max().item(),
        "training": (out - case.tensors["out_train"]).abs().max().item(),
    }
    dims = partition_dims(network)
    for name, parameter in network.named_parameters():
        if f"g.{name}" in case.tensors:
            wanted = case.tensors[f"g.{name}"]
            scale = wanted.abs().max().clamp_min(1e-9)
            part = shard(wanted, dims[name], parallel)
            found[name] = ((parameter.main_grad - part).abs().max() / scale).item()
    return found


@pytest.mark.parametrize("share_memory", [False, True], ids=["gloo", "memory"])
@pytest.mark.parametrize(
    ("name", "tensor_size", "context_size", "sequence_parallel"),
    [
        ("a_base_4x16_div", 2, 1, False),
        ("a_base_4x16_div", 2, 1, True),
        ("b_5stage_notdiv_vmask", 2, 1, True),
        ("d_single_ff", 2, 1, True),
        ("d_single_ff", 2, 1, False),
        ("g_dense", 2, 1, True),
        ("f_noskip", 2, 1, True),
        ("h_rmsnorm", 2, 1, False),
        ("a_base_4x16_div", 1, 2, False),
        ("c_5stage_div_b1", 1, 2, False),
        ("d_single_ff", 1, 2, False),
        ("g_dense", 1, 2, False),
        ("a_base_4x16_div", 4, 1, True),
        ("a_base_4x16_div", 2, 2, False),
        ("a_base_4x16_div", 2, 2, True),
    ],
)
def test_layout_equals_one_rank(golden, name, tensor_size, context_size, sequence_parallel, share_memory):
    path = golden(f"predictor/{name}.safetensors")
    ranks = tensor_size * context_size
    for found in run_ranks(differences, ranks, path, tensor_size, context_size, sequence_parallel, share_memory):
        assert len(found) > 20
        for key, value in found.items():
            assert value < (OUTPUT if key in ("evaluation", "training") else GRADIENT), key


def fresh_weights(path, tensor_size: int) -> dict[str, float]:
    """Sums of a fresh network's parameters, over the TP ranks where they are split."""
    from mindspeed_mm.models.build import build_denoiser

    parallel = ParallelContext.start(tensor_size=tensor_size)
    network = build_denoiser(Case.read(path).config, parallel, seed=5)
    dims = partition_dims(network)
    sums = {}
    for name, parameter in network.named_parameters():
        total = parameter.detach().double().abs().sum()
        if dims[name] is not None:
            torch.distributed.all_reduce(total, group=parallel.tensor)
        sums[name] = total.item()
    return sums


def test_fresh_weights_are_the_same_at_every_layout(golden):
    path = golden("predictor/a_base_4x16_div.safetensors")
    one = run_ranks(fresh_weights, 2, path, 1)[0]
    for two in run_ranks(fresh_weights, 2, path, 2):
        assert two == pytest.approx(one, rel=1e-9)


def indivisible(path) -> str:
    parallel = ParallelContext.start(tensor_size=2, sequence_parallel=True)
    case = Case.read(path)
    try:
        run(case.network(parallel), case.inputs())
    except ValueError as error:
        return str(error)
    return ""


def test_tokens_that_do_not_divide_are_refused_with_the_numbers(golden):
    for message in run_ranks(indivisible, 2, golden("predictor/h_rmsnorm.safetensors")):
        assert "15 video tokens do not divide by 2 (context parallel 1 x sequence parallel 2)" in message


def test_relative_sees_a_difference():
    assert relative(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])) == pytest.approx(0.2)

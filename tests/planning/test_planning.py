"""A plan: layouts that fit, cheapest first, without torch; what does not fit says what is largest."""

import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import config_files
import pytest
import torch
from ranks import run_ranks
from torch.utils._python_dispatch import _disable_current_modes

import mindspeed_mm as mm
from mindspeed_mm import families, types
from mindspeed_mm.adapters.attach import attach_trained
from mindspeed_mm.adapters.base import StreamedWeight, hold_base, loads_on_host
from mindspeed_mm.cli import planning
from mindspeed_mm.config import arguments
from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.ops.packed import Packed
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.host_inputs import HostInputs
from mindspeed_mm.parallel.megatron_engine import MegatronEngine
from mindspeed_mm.parallel.seeds import SampleDraws
from mindspeed_mm.planning import job, layouts, memory, report
from mindspeed_mm.planning.cards import card_of
from mindspeed_mm.platforms.copies import Copies
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.schema import check
from mindspeed_mm.types import TextFeatures

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "opensoraplan1.5"
sys.path.insert(0, str(ROOT / "benchmarks"))
PUBLISHED = EXAMPLES / "model_opensoraplan1_5.json", EXAMPLES / "data.json"


@pytest.fixture(scope="module")
def v1_5() -> job.Job:
    return job.read(*PUBLISHED)


def test_the_job_is_that_of_the_published_files(v1_5):
    assert v1_5.size == (121, 576, 1024)
    assert v1_5.grid == (16, 36, 64)
    assert (v1_5.text_tokens, v1_5.dtype) == (512, "bf16")
    assert job.read(*PUBLISHED, text_tokens=100).text_tokens == 100


def test_parts_follow_from_the_parameters_and_the_layout(v1_5):
    numbers = sum(math.prod(p.shape) for p in families.of_denoiser(v1_5.denoiser).parameters(v1_5.denoiser).values())
    one = memory.parts(v1_5, memory.Layout(1, 1, 1, "none"))
    assert one["weights"] == 2 * numbers
    assert one["gradients"] == one["main weights"] == one["average"] == 4 * numbers
    assert one["moments"] == 8 * numbers
    eight = memory.parts(v1_5, memory.Layout(8, 1, 8, "none"))
    assert eight["moments"] < one["moments"] / 55
    assert eight["weights"] > one["weights"] / 8  # norms and embeddings are not split


def test_with_an_adapter_only_its_parameters_are_trained(v1_5, tmp_path):
    adapter = AdapterConfig(kind="lora", rank=16, targets=("attention",))
    run = dataclasses.replace(v1_5, adapter=adapter)
    whole, one = (memory.parts(each, memory.Layout(2, 1, 4, "blocks")) for each in (v1_5, run))
    trained = one["gradients"] // 4
    assert one["weights"] == whole["weights"] + 4 * trained
    assert one["moments"] == 8 * (trained // 4)
    assert one["main weights"] == 0  # an adapter is fp32
    assert trained < 0.01 * whole["weights"] / 2
    assert one["activations"] == pytest.approx(whole["activations"], rel=1e-3)  # and A x of one block
    line = report.command(run, memory.Layout(1, 1, 1, "blocks"))
    flags = arguments.TRAIN.parse(
        [
            "--mm-model",
            "m",
            "--mm-data",
            "d",
            "--lr",
            "1",
            "--train-iters",
            "1",
            *shlex.split(line.partition(" --adapter ")[1] + line.partition(" --adapter ")[2]),
        ]
    ).values
    assert flags.adapter == dataclasses.replace(adapter, targets=("attention",))
    with pytest.raises(ConfigError, match="did you mean 'attention'"):
        job.read(*PUBLISHED, adapter=dataclasses.replace(adapter, targets=("atention",)))
    assert mm.plan(*PUBLISHED, cards=1, memory_gib=80) == []
    assert mm.plan(*PUBLISHED, cards=1, memory_gib=80, adapter=adapter)


SMALL = SparseUMMDiTConfig(
    num_layers=(2, 2, 2),
    sparse_n=(1, 2, 1),
    sparse1d=True,
    double_ff=True,
    skip_connection=True,
    num_heads=4,
    head_dim=32,
    in_channels=8,
    caption_channels=64,
    pooled_projection_dim=32,
    timestep_embed_dim=32,
)


class Uncounted(Copies):
    """Copies whose memory on the host does not count as the device's."""

    def like(self, tensor):
        with _disable_current_modes():
            return super().like(tensor)


def step_memory(
    adapter: AdapterConfig, recompute_blocks: int = 0, offloaded_blocks: int = 0
) -> tuple[dict[str, int], int]:
    """Bytes of weights, gradients and optimizer state that a run on this rank holds, and the peak of a step beside them."""
    from tensor_memory import TensorMemory

    parallel = ParallelContext.start()
    network = build_denoiser(SMALL, parallel, seed=0, recompute_blocks=recompute_blocks).train()
    if loads_on_host(adapter):
        hold_base(network, SMALL, adapter, torch.device("cpu"), Copies())
    attach_trained(network, SMALL, adapter, parallel, 0)
    network.keep_inputs_on_host(HostInputs(Uncounted(), offloaded_blocks))
    engine = MegatronEngine(network, parallel, CpuPlatform(), OptimizerSettings(use_distributed_optimizer=True))
    held = {
        "weights": sum(parameter.nbytes for parameter in network.parameters()) + held_bytes(network),
        "gradients": sum(buffer.grad_data.nbytes for buffer in engine.ddp.buffers),
        "moments": sum(value.nbytes for values in engine.moments().values() for value in values),
    }
    with mock.patch.object(types, "LEAST_RECOMPUTED_BYTES", 0), TensorMemory() as counted:
        text = TextFeatures(torch.zeros(1, 64, 64), torch.ones(1, 64, dtype=torch.bool), torch.zeros(1, 32))
        draws = SampleDraws(0, ((0, 0),))
        velocity = network(torch.zeros(1, 8, 2, 32, 32), torch.full((1,), 0.5), text, draws=draws)
        velocity.square().mean().backward()
    return held, counted.peak


def held_bytes(network) -> int:
    """Of weights that linears have given away: all of those that are packed, and the places of streamed blocks."""
    held = [module.held for module in network.modules() if getattr(module, "held", None) is not None]
    streams = {id(one.stream): one.stream for one in held if isinstance(one, StreamedWeight)}
    packed = [one for one in held if isinstance(one, Packed)]
    return sum(place.nbytes for stream in streams.values() for place in stream._places) + sum(
        one.codes.nbytes + one.scales.nbytes for one in packed
    )


@pytest.mark.parametrize(
    ("kind", "rank", "held", "recompute", "offloaded"),
    [
        ("lora", 16, {}, "none", 0),
        ("dora", 4, {}, "none", 0),
        ("lora", 16, {"base_weights": "int8"}, "none", 0),
        ("lora", 16, {"dropout": 0.1}, "none", 0),
        ("lora", 16, {"dropout": 0.1}, "blocks", 0),
        ("lora", 16, {}, "blocks", 6),
        ("lora", 16, {"base_weights": "nf4", "stream_blocks": 2}, "none", 0),
        ("lora", 16, {"stream_blocks": 1}, "none", 0),
    ],
)
def test_the_memory_of_an_adapters_step_is_as_planned(kind, rank, held, recompute, offloaded):
    adapter = AdapterConfig(kind=kind, rank=rank, **held)
    run = job.Job("", "", SMALL, (9, 256, 256), (2, 16, 16), 64, "fp32", 0, adapter=adapter)
    run = dataclasses.replace(run, offloaded_blocks=offloaded)
    planned = memory.parts(run, memory.Layout(1, 1, 1, recompute))
    ((held, peak),) = run_ranks(step_memory, 1, adapter, 6 if recompute == "blocks" else 0, offloaded)
    for part, found in held.items():
        assert planned[part] == pytest.approx(found, rel=0.01), part
    assert planned["activations"] == pytest.approx(peak, rel=0.05)


def test_every_layout_divides_heads_and_tokens(v1_5):
    found = list(layouts.candidates(v1_5, 64))
    assert {layout.cards for layout in found} == {64}
    assert all(24 % (layout.tensor * layout.context) == 0 for layout in found)
    assert {(layout.tensor, layout.context) for layout in found} >= {(1, 1), (8, 1), (4, 2), (1, 8)}


def test_layouts_that_fit_come_cheapest_first_where_no_rates_are_known():
    found = mm.plan(*PUBLISHED, cards=64, memory_gib=64)
    assert not any("step_seconds" in one for one in found)
    assert all(one["total_gib"] <= 64 * memory.USABLE for one in found)
    assert all(one["total_gib"] == pytest.approx(sum(one["gib"].values())) for one in found)
    kinds = [one["recompute"] == "blocks" for one in found]
    assert kinds == sorted(kinds)  # what repeats a third of the work comes last
    assert "TP=4 CP=1 NPUS_PER_NODE=8 NNODES=8" in found[0]["command"]


@pytest.mark.parametrize("recompute", memory.RECOMPUTE)
def test_the_command_is_one_that_the_script_and_the_program_take(v1_5, recompute, tmp_path):
    layout = memory.Layout(4, 1, 3, recompute)  # 12 cards: no whole nodes of 8
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    given = {
        "PYTHON": str(python),
        "LOG_DIR": str(tmp_path),
        "DEVICE": "cpu",
        "NODE_RANK": "1",
        "MASTER_ADDR": "10.0.0.1",
    }
    line = report.command(v1_5, layout)
    ran = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=os.environ | given, capture_output=True, text=True, timeout=30
    )
    assert ran.returncode == 0, ran.stderr
    launcher, _, words = ran.stdout.strip().partition("pretrain_opensoraplan.py ")
    assert "--nproc_per_node 4 --nnodes 3 --node_rank 1" in launcher
    flags = arguments.TRAIN.parse(shlex.split(words)).values
    check(flags)
    assert (flags.launch.tensor_size, flags.mm_model) == (4, v1_5.model_json)
    assert (flags.recompute.num_layers > 0, flags.recompute.feed_forwards > 0) == (
        recompute == "blocks",
        recompute == "feed-forwards",
    )


def test_what_does_not_fit_names_the_largest_parts(v1_5):
    assert mm.plan(*PUBLISHED, cards=1, memory_gib=24) == []
    card = card_of(memory_gib=24)
    text = report.text(v1_5, 1, card, report.rows(v1_5, 1, card))
    assert "No layout fits" in text
    assert "moments 63.4 GiB: more cards" in text


def test_stored_features_leave_the_encoders_out(tmp_path):
    config_files.write_all(tmp_path)
    model, data = tmp_path / "model.json", tmp_path / "data.json"
    assert job.read(model, data).frozen_bytes > 0
    config_files.change(model, "load_video_features", True)
    config_files.change(model, "load_text_features", True)
    assert job.read(model, data).frozen_bytes == 0


def test_the_command_prints_a_table_or_json_and_ends_with_1_if_nothing_fits(capsys):
    files = ["--mm-model", str(PUBLISHED[0]), "--mm-data", str(PUBLISHED[1])]
    planning.plan([*files, "--cards", "64", "--card", "910b-64g"])
    assert "GiB on each card" in capsys.readouterr().out
    planning.plan([*files, "--cards", "64", "--memory-gib", "64", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["cards"] == 64
    with pytest.raises(SystemExit, match="1"):
        planning.plan([*files, "--cards", "1", "--card", "4090-24g"])
    assert "No layout fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--card", "h100-80"], "h100-80g"),
        ([], "give --card or --memory-gib"),
        (["--card", "h100-80g", "--tflops", "0"], "--tflops"),
        (["--card", "h100-80g", "--cards", "0"], "--cards"),
    ],
)
def test_a_mistake_is_one_line(flags, message, capsys):
    files = ["--mm-model", str(PUBLISHED[0]), "--mm-data", str(PUBLISHED[1])]
    with pytest.raises(SystemExit):
        planning.plan([*files, *flags])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_plan_imports_neither_torch_nor_megatron():
    code = "import sys; from mindspeed_mm.planning import report; assert not {'torch', 'megatron'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

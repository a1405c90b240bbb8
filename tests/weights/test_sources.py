"""Whatever weights come in, a network of any TP size gets the same bits: published dialects, files, our torch_dist."""

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest
import torch
from checkpoint_files import TINY, last_block, mm_name, same, shards_of, whole_weights, write_directory
from ranks import run_ranks

from mindspeed_mm.checkpoint import torch_dist
from mindspeed_mm.checkpoint.shares import Shares
from mindspeed_mm.checkpoint.store import CheckpointStore
from mindspeed_mm.config.run import RecomputeConfig
from mindspeed_mm.config.trained import TrainedConfig
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.files import safetensors_file
from mindspeed_mm.files.reshard import Weights
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.partition import partition_dims
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.training import build as training_build
from mindspeed_mm.weights import load_denoiser, merge_checkpoint, sources, split_checkpoint, targets

LAST = last_block(TINY)


def table(golden, name: str) -> dict:
    """Names that the original's v1.5 network has, with None for Megatron's empty entries."""
    return json.loads(golden("predictor/shapes_full_v1_5.json").read_text())[name]


def osp_directory(golden, root, whole) -> None:
    """As Open-Sora Plan's training leaves it at TP 2: the names of its own state dict, `_extra_state` included."""
    names = table(golden, "tp2_rank0")
    shards = shards_of(whole, 2)
    states = [{name: None if shape is None else shard[name] for name, shape in names.items()} for shard in shards]
    assert {name for name, shape in names.items() if shape is not None} == whole.keys()
    # its launch flags hold objects of its own classes
    write_directory(root, states, states, flags={"rank": 0, "params_dtype": torch.bfloat16, "save": "somewhere"})


def mm_directory(golden, root, whole, size) -> None:
    """As MindSpeed-MM 26.0.0 writes it: a release, its names, no text tail."""
    names = [name for name, shape in table(golden, "tp1").items() if shape is not None]
    states = [{mm_name(name): shard[name] for name in names} for shard in shards_of(whole, size)]
    assert any(".proj_q." in name for name in states[0]) and not any(".to_q." in name for name in states[0])
    write_directory(root, states, iteration=None, rank_suffix="_000")


def write_torch_dist(folder, whole) -> None:
    """On two TP ranks: weights, and fp32 averages twice as large."""
    parallel = ParallelContext.start(tensor_size=2)
    network = build_denoiser(TINY, parallel, device="meta", seed=None)
    dims = partition_dims(network)
    mine = {name: value for name, value in shards_of(whole, 2)[parallel.tensor_rank].items() if name in dims}
    shares = Shares(dims, parallel)
    parts = shares.of_parameters("model", mine)
    parts += shares.of_parameters("ema_params", {name: 2 * value.float() for name, value in mine.items()})
    store = CheckpointStore(folder, parallel)
    store.save(3, lambda directory: torch_dist.prepare(parts, {"iteration": 3}, directory, parallel))


@pytest.fixture(scope="module")
def whole():
    return whole_weights(config=TINY, text_tail=True)


@pytest.fixture(scope="module")
def every_source(golden, whole, tmp_path_factory):
    """Name -> path, of everything that holds the same weights."""
    folder = tmp_path_factory.mktemp("sources")
    osp_directory(golden, folder / "osp", whole)
    for size in (1, 4):
        mm_directory(golden, folder / f"mm{size}", whole, size)
    run_ranks(write_torch_dist, 2, folder / "torch_dist", whole)
    found = {name: folder / name for name in ("osp", "mm1", "mm4", "torch_dist")}
    found["iteration"] = folder / "osp" / "iter_0000007"
    found["pt"] = merge_checkpoint(found["osp"], folder / "pt")
    found["safetensors"] = merge_checkpoint(found["pt"], folder / "safetensors", format="safetensors")
    found["several"] = merge_checkpoint(found["pt"], folder / "several", format="safetensors", largest=2_000_000)
    found["folder"] = folder / "several"
    return found


def wrong_in_training(paths: dict, tensor_size: int, whole_file) -> list[str]:
    """Of the paths those from which training builds another denoiser than this rank's part of the weights."""
    parallel = ParallelContext.start(tensor_size=tensor_size)
    wanted = shards_of(torch.load(whole_file, weights_only=True), tensor_size)[parallel.tensor_rank]
    wrong = []
    for name, path in paths.items():
        config = SimpleNamespace(
            model=SimpleNamespace(predictor=dataclasses.replace(TINY, from_pretrained=str(path))),
            precision=SimpleNamespace(denoiser="bf16"),
            fp8_format=None,
            adapter=AdapterConfig(),
            trained=TrainedConfig(),
            seed=0,
            compile=False,
            recompute=RecomputeConfig(),
        )
        network, _ = training_build._denoiser(config, parallel, CpuPlatform(), torch.device("cpu"))
        if not same({key: value.detach() for key, value in network.named_parameters()}, wanted):
            wrong.append(name)
    return wrong


def without_tail(whole: dict) -> dict:
    return {
        name: value
        for name, value in whole.items()
        if not re.match(rf"{LAST}\.(attn1\.to_add_out|norm2\.norm_enc|ff_enc)\.", name)
    }


@pytest.mark.parametrize("tensor_size", [1, 2])
def test_training_starts_from_every_source(every_source, whole, tensor_size, tmp_path):
    torch.save(without_tail(whole), tmp_path / "whole.pt")
    for wrong in run_ranks(wrong_in_training, tensor_size, every_source, tensor_size, tmp_path / "whole.pt"):
        assert wrong == []


def test_dialects_and_layouts_are_recognised(every_source):
    opened = {name: sources.open_checkpoint(path) for name, path in every_source.items()}
    assert {name: checkpoint.dialect.name for name, checkpoint in opened.items()} == {
        name: "MM" if name.startswith("mm") else "OSP" for name in every_source
    }
    sizes = {name: checkpoint.tensor_size for name, checkpoint in opened.items() if checkpoint.tensor_size > 1}
    assert sizes == {"osp": 2, "iteration": 2, "mm4": 4}
    iterations = {name: checkpoint.iteration for name, checkpoint in opened.items() if checkpoint.iteration}
    assert iterations == {"osp": 7, "iteration": 7, "torch_dist": 3}


def test_torch_dist_is_merged_and_split(every_source, whole, tmp_path):
    kept = without_tail(whole)
    merged = merge_checkpoint(every_source["torch_dist"], tmp_path / "out")
    assert same(torch.load(merged, weights_only=True), kept)
    averaged = merge_checkpoint(every_source["torch_dist"], tmp_path / "out", ema=True)
    assert same(torch.load(averaged, weights_only=True), {name: 2 * value.float() for name, value in kept.items()})
    four = split_checkpoint(every_source["torch_dist"], tmp_path / "four", 4)
    assert same(torch.load(merge_checkpoint(four, tmp_path / "again"), weights_only=True), kept)


def resident(path) -> int:
    """Bytes of a file that are in this process's memory through mappings of it."""
    total, inside = 0, False
    with open("/proc/self/smaps", encoding="utf-8") as lines:
        for line in lines:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                inside = line.rstrip().endswith(str(path))
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_rank_reads_its_slice_only(tmp_path, kind):
    """The pages that came into memory, of a weight that is split by rows over 8 ranks."""
    name = "transformer_blocks.0.0.attn1.to_q.weight"
    path = tmp_path / f"big.{kind}"
    big = torch.arange(8 * 2**20, dtype=torch.float32).view(8192, 1024)  # 32 MiB
    whole = Weights([{name: big}], lambda _: 0, "here")
    targets.execute(targets.flat_file(whole, tmp_path / "big", format=kind), whole, "writing")
    del whole
    opened = sources.open_checkpoint(path)
    part = Weights(opened.groups["model"], opened.split, "file", mapped=None)  # pages stay to be counted
    before = resident(path)
    mine = part.part(name, 3, 8)
    assert torch.equal(mine, big[3 * 1024 : 4 * 1024])
    assert mine.nbytes <= resident(path) - before < 2 * mine.nbytes
    released = opened.weights()  # and this way they are given back
    everything = released.part(name)
    assert torch.equal(everything, big)
    assert resident(path) < big.nbytes / 2


def test_what_is_left_over_is_said_name_by_name(every_source, whole, tmp_path, caplog):
    broken = {**without_tail(whole), "surely.unknown": torch.ones(1), "proj_out.bias": torch.ones(3)}
    del broken["norm_final.weight"]
    torch.save(broken, tmp_path / "broken.pt")
    network = build_denoiser(TINY, ParallelContext.current(), seed=1)
    before = network.norm_final.weight.clone()
    with pytest.raises(CheckpointError, match=r"1 missing \(norm_final.weight\).*1 unknown \(surely.unknown\)"):
        load_denoiser(network, tmp_path / "broken.pt")
    assert torch.equal(network.norm_final.weight, before)
    caplog.clear()
    with caplog.at_level("INFO", logger="mindspeed_mm"):
        load_denoiser(network, every_source["pt"])
    dropped = next(record.getMessage() for record in caplog.records if "left out" in record.getMessage())
    assert dropped.count(LAST) == 6
    strange = {**without_tail(whole), f"{LAST}.ff_enc.net.7.weight": torch.ones(1)}  # not one of the six
    torch.save(strange, tmp_path / "strange.pt")
    with pytest.raises(CheckpointError, match="1 unknown"):
        load_denoiser(network, tmp_path / "strange.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_layers": (2, 4, 6, 6, 6, 4, 2), "sparse_n": (1, 2, 4, 8, 4, 2, 1)}, "num_layers"),
        ({"num_heads": 8}, "num_heads is 4 by the weights, 8 in the config"),
        ({"double_ff": False}, "double_ff is True by the weights, False in the config"),
    ],
)
def test_a_wrong_config_is_named(every_source, change, words):
    network = build_denoiser(dataclasses.replace(TINY, **change), ParallelContext.current(), seed=1)
    with pytest.raises(CheckpointError, match="does not fit the network") as error:
        load_denoiser(network, every_source["osp"])
    assert words in str(error.value)


def test_an_index_without_one_of_its_files(every_source, tmp_path):
    index = tmp_path / every_source["several"].name
    index.write_bytes(every_source["several"].read_bytes())
    with pytest.raises(CheckpointError, match="model-00001-of-.*missing; .* names it"):
        safetensors_file.read_index(index)

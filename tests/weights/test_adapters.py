"""An adapter's files: PEFT reads what is written here, and a network computes the same with them."""

import dataclasses
import json

import pytest
import torch
from config_files import PREDICTOR
from safetensors.torch import load_file, save_file
from torch import nn

import mindspeed_mm as mm
from mindspeed_mm import families, logs
from mindspeed_mm.adapters import attach
from mindspeed_mm.adapters.record import AdapterRecord
from mindspeed_mm.cli import adapters as cli
from mindspeed_mm.config.distillation import DistillConfig
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.files.reshard import Weights
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.schema import node_from_python
from mindspeed_mm.weights import adapters, kohya
from mindspeed_mm.weights.adapter_changes import _low_rank, extract_adapter, merge_adapters
from mindspeed_mm.weights.distilled import distilled_of

TARGETS = ("attention", "feed_forward", "modulation", "text")


def adapted(kind: str = "lora", rank: int = 3, seed: int = 0, targets=TARGETS):
    """A network with an adapter whose B is not zero, the adapter as files know it, and its parts."""
    network = mm.build_denoiser(PREDICTOR, seed=1)
    config = AdapterConfig(kind=kind, rank=rank, alpha=2 * rank, targets=targets)
    branches = attach.attach_trained(network, network.config, config, ParallelContext.current(), seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for branch in branches.values():
            branch.lora_B.uniform_(-0.1, 0.1)
            if branch.lora_magnitude_vector is not None:
                branch.lora_magnitude_vector.mul_(1.1)
    tensors = {
        f"{layer}.{kind}": value for layer, branch in branches.items() for kind, value in branch.named_parameters()
    }
    tensors = {name: value.detach() for name, value in tensors.items()}
    layers = {layer: adapters.LayerAdapter(rank, config.scale, config.dora) for layer in branches}
    record = AdapterRecord(config, "SparseUMMDiT", base="a" * 64)
    family = families.DENOISERS["SparseUMMDiT"]
    weights = Weights([tensors], lambda name: None, "a test")
    assert family.model_id == record.model_id
    return network, adapters.Adapter("a test", weights, layers, record), branches


@pytest.fixture(params=["lora", "rslora", "dora"])
def written(request, tmp_path):
    network, adapter, _ = adapted(request.param)
    return network, adapter, adapters.write_peft(adapter, tmp_path / "adapter")


def test_an_adapter_says_that_it_is_distilled(tmp_path):
    network, adapter, _ = adapted("lora")
    said = DistillConfig(method="steps", steps=4).record(DiffusionConfig(), None)
    record = dataclasses.replace(adapter.record, distilled=said.plain())
    folder = adapters.write_peft(dataclasses.replace(adapter, record=record), tmp_path / "adapter")
    base = {name: value for name, value in network.state_dict().items() if value is not None and "lora" not in name}
    torch.save(base, tmp_path / "base.pt")
    assert distilled_of(tmp_path / "base.pt", [folder]) == said
    assert distilled_of(tmp_path / "base.pt") is None


def plain_module(network: nn.Module, layers) -> nn.Module:
    """A module of torch's own linears with these layers' names and weights, such as diffusers'."""
    root = nn.Module()
    for layer in layers:
        linear, parent = network.get_submodule(layer), root
        *path, last = layer.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        mine = nn.Linear(linear.weight.shape[1], linear.weight.shape[0], bias=linear.bias is not None)
        mine.load_state_dict({name: getattr(linear, name).detach() for name, _ in mine.named_parameters()})
        parent.add_module(last, mine)
    root.forward = lambda: None
    return root


def test_peft_loads_it_onto_a_module_of_the_same_names(written):
    peft = pytest.importorskip("peft")
    network, adapter, folder = written
    model = peft.PeftModel.from_pretrained(plain_module(network, adapter.layers), folder)
    for layer in adapter.layers:
        theirs = model.get_submodule(f"base_model.model.{layer}")
        x = torch.randn(5, 2, network.get_submodule(layer).weight.shape[1])
        x = x[0] if layer.endswith("linear") else x
        torch.testing.assert_close(theirs(x), network.get_submodule(layer)(x), rtol=1e-5, atol=1e-5)
        assert not torch.equal(theirs.base_layer(x), theirs(x))


def test_a_network_computes_the_same_with_the_files(written):
    network, adapter, folder = written
    fresh = mm.build_denoiser(PREDICTOR, seed=1)
    before = {layer: fresh.get_submodule(layer)(probe(fresh, layer)) for layer in adapter.layers}
    branches = adapters.load_adapter(fresh, folder, base="a" * 64)
    for layer in adapter.layers:
        x = probe(fresh, layer)
        assert torch.equal(fresh.get_submodule(layer)(x), network.get_submodule(layer)(x)), layer
        assert not torch.equal(fresh.get_submodule(layer)(x), before[layer])
    attach.detach(fresh, branches)
    assert all(torch.equal(fresh.get_submodule(layer)(probe(fresh, layer)), before[layer]) for layer in before)


def probe(network, layer: str) -> torch.Tensor:
    return torch.linspace(-1, 1, 4 * network.get_submodule(layer).weight.shape[1]).view(4, -1)


def test_a_scale_multiplies_the_update_and_several_adapters_add_up(tmp_path):
    folders = []
    for seed in (0, 1):
        _, adapter, _ = adapted(seed=seed)
        folders.append(adapters.write_peft(adapter, tmp_path / str(seed)))
    layer = "transformer_blocks.0.0.attn1.to_q"

    def output(*choices) -> torch.Tensor:
        network = mm.build_denoiser(PREDICTOR, seed=1)
        for folder, scale in choices:
            adapters.load_adapter(network, folder, scale)
        return network.get_submodule(layer)(probe(network, layer))

    plain, first, second = output(), output((folders[0], 1.0)), output((folders[1], 1.0))
    torch.testing.assert_close(output((folders[0], 0.5)), (plain + first) / 2)
    both = output((folders[0], 1.0), (folders[1], -2.0))
    torch.testing.assert_close(both, first - 2 * (second - plain))


def test_bad_adapters_are_refused_in_one_line(tmp_path):
    _, adapter, _ = adapted()
    folder = adapters.write_peft(adapter, tmp_path / "adapter")
    network = mm.build_denoiser(PREDICTOR, seed=1)
    wide = mm.build_denoiser({**PREDICTOR, "num_heads": 4}, seed=1)
    one_path = mm.build_denoiser({**PREDICTOR, "double_ff": False}, seed=1)
    cases = {
        "another base": lambda: adapters.load_adapter(network, folder, base="b" * 64),
        "another network: .* this one needs": lambda: adapters.load_adapter(wide, folder),
        "another network: .* no linear .*ff_enc": lambda: adapters.load_adapter(one_path, folder),
        "missing; an adapter is a folder": lambda: adapters.load_adapter(network, tmp_path),
    }
    for message, load in cases.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            load()
        assert "\n" not in str(caught.value)
    config = json.loads((folder / adapters.CONFIG).read_text())
    (folder / adapters.CONFIG).write_text(json.dumps({**config, "lora_bias": True}))
    with pytest.raises(CheckpointError, match="lora_bias True cannot be used"):
        adapters.load_adapter(network, folder)


@pytest.fixture
def base(tmp_path):
    """The file of the network that `adapted` builds on."""
    state = mm.build_denoiser(PREDICTOR, seed=1).state_dict()
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "base.pt")
    return tmp_path / "base.pt"


def with_base(adapter: adapters.Adapter, base) -> adapters.Adapter:
    record = dataclasses.replace(adapter.record, base=adapters.fingerprint_of(base))
    return dataclasses.replace(adapter, record=record)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merged_weights_compute_what_the_adapter_does(base, tmp_path, kind):
    network, adapter, _ = adapted(kind)
    scale = 1.0 if kind == "dora" else 0.5
    path = merge_adapters(base, [(with_base(adapter, base), scale)], tmp_path / "merged", format="safetensors")
    merged = mm.build_denoiser({**PREDICTOR, "from_pretrained": str(path)})
    apart = mm.build_denoiser({**PREDICTOR, "from_pretrained": str(base)})
    adapters.load_adapter(apart, adapters.write_peft(adapter, tmp_path / "adapter"), scale)
    moved = 0
    for layer in adapter.layers:
        x = probe(merged, layer)
        torch.testing.assert_close(merged.get_submodule(layer)(x), apart.get_submodule(layer)(x), rtol=1e-5, atol=1e-5)
        moved += not torch.equal(merged.get_submodule(layer).weight, apart.get_submodule(layer).weight)
    assert moved == len(adapter.layers)
    same = merged.get_parameter("proj_out.weight"), apart.get_parameter("proj_out.weight")
    assert torch.equal(*same)
    with pytest.raises(CheckpointError, match="another base"):
        merge_adapters(path, [(with_base(adapter, base), 1.0)], tmp_path / "twice")


def test_extracting_from_merged_weights_gives_the_adapter_back(base, tmp_path, caplog):
    _, adapter, _ = adapted(rank=3)
    path = merge_adapters(base, [(with_base(adapter, base), 1.0)], tmp_path / "merged")
    for options in ({"rank": 3}, {"error": 1e-3}):
        found = extract_adapter(path, base, **options)
        assert list(found.layers) == list(adapter.layers)
        for layer, settings in adapter.layers.items():
            assert found.layers[layer].rank == 3
            change = settings.scale * product(adapter, layer)
            torch.testing.assert_close(product(found, layer), change, rtol=1e-4, atol=1e-5)
    coarse = extract_adapter(path, base, rank=1)
    layer = next(iter(adapter.layers))
    assert coarse.weights.shape(f"{layer}.lora_A")[0] == 1
    with pytest.raises(CheckpointError, match="there is nothing to extract"):
        extract_adapter(base, base, rank=1)


def product(adapter: adapters.Adapter, layer: str) -> torch.Tensor:
    return adapter.weights.part(f"{layer}.lora_B") @ adapter.weights.part(f"{layer}.lora_A")


def test_the_randomized_svd_finds_the_largest_values():
    torch.manual_seed(0)
    matrix = torch.randn(90, 6) @ torch.randn(6, 70) + 1e-3 * torch.randn(90, 70)
    up, down = _low_rank(matrix, 6, None, "a test")
    exact = torch.linalg.svdvals(matrix)[6:].square().sum().sqrt()
    assert torch.linalg.vector_norm(matrix - up @ down) <= 1.01 * exact


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_kohyas_file_and_back(tmp_path, kind):
    _, adapter, _ = adapted(kind)
    file = kohya.write(adapter, tmp_path / "adapter.safetensors")
    assert "lora_unet_transformer_blocks_0_0_attn1_to_q.lora_down.weight" in load_file(file)
    config = families.read_denoiser(node_from_python(PREDICTOR, "predictor"))
    again = kohya.read(file, config)
    assert set(again.weights) == set(adapter.weights)
    for name in adapter.weights:
        assert torch.equal(again.weights.part(name), adapter.weights.part(name))
    for layer, settings in adapter.layers.items():
        assert again.layers[layer].scale == pytest.approx(settings.scale)
    save_file({"lora_unet_other.lora_up.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no linear of this name"):
        kohya.read(tmp_path / "other.safetensors", config)


def test_the_command_merges_extracts_and_converts(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logs, "setup", lambda: None)
    _, adapter, _ = adapted()
    folder = adapters.write_peft(with_base(adapter, base), tmp_path / "adapter")
    cli.adapter(["merge", "--load", str(base), "--adapter", f"{folder}=2", "--save", str(tmp_path / "merged")])
    merged = capsys.readouterr().out.strip()
    flags = ["--load", merged, "--base", str(base), "--save", str(tmp_path / "again"), "--rank", "3"]
    cli.adapter(["extract", *flags])
    file = tmp_path / "adapter.safetensors"
    cli.adapter(["convert", "--load", str(tmp_path / "again"), "--save", str(file), "--format", "kohya"])
    assert load_file(file)["lora_unet_caption_projection.alpha"] == 3
    for words, message in {
        ("mrge",): "expected merge, extract, convert; did you mean 'merge'",
        ("convert", "--load", str(file), "--save", str(tmp_path / "x")): "needs --mm-model",
        ("extract", "--load", merged, "--base", merged, "--save", "x"): "or --error: give one of them",
    }.items():
        with pytest.raises(SystemExit):
            cli.adapter(words)
        assert message in capsys.readouterr().err

"""An adapter's files: PEFT reads what is written here, and a network computes the same with them."""

import json

import pytest
import torch
from config_files import PREDICTOR
from torch import nn

import mindspeed_mm as mm
from mindspeed_mm import families
from mindspeed_mm.adapters import attach
from mindspeed_mm.adapters.record import AdapterRecord
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.files.reshard import Weights
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.weights import adapters

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

"""torch.compile: each block is one graph, with the numbers of the block as it is."""

import dataclasses

import pytest
import torch
import torch._inductor.config
from tiny_denoiser import CONFIG

from mindspeed_mm.adapters.attach import attach_trained
from mindspeed_mm.adapters.base import hold_base
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.models.float8 import use_float8
from mindspeed_mm.ops import rope3d
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.copies import Copies
from mindspeed_mm.types import TextFeatures


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    with torch._inductor.config.patch(compile_threads=1):  # or processes start that import torch to compile beside
        yield
    torch.compiler.reset()


def step(network, frames: int = 2, text_tokens: int = 5) -> list[torch.Tensor]:
    """Output and gradients of a training step."""
    generator = torch.Generator().manual_seed(0)
    keep = torch.ones(1, text_tokens, dtype=torch.bool)
    sequence = torch.randn(1, text_tokens, 12, generator=generator)
    text = TextFeatures(sequence, keep, torch.randn(1, 6, generator=generator))
    latents = torch.randn(1, 4, frames, 6, 10, generator=generator)
    network.zero_grad()
    out = network(latents, torch.tensor([0.3]), text)
    out.square().sum().backward()
    return [out.detach(), *(parameter.grad.clone() for parameter in network.parameters())]


def assert_close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max() + 1e-7


def test_a_block_is_one_graph_of_inductor_and_gives_the_same_numbers():
    """The compiled block keeps what goes into GELU, and not what comes out."""
    network = build_denoiser(CONFIG, ParallelContext.current(), seed=1).train()
    wanted = step(network)
    block = network.transformer_blocks[1][1]  # group skip; 30 tokens are padded to 32, so with a mask
    compiled = torch.compile(block.forward, fullgraph=True)
    kept = []

    def forward(*arguments):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
            return compiled(*arguments)

    block.forward = forward
    assert_close(step(network), wanted)
    assert [kept.count((tokens, 4 * 32)) for tokens in (30, 5)] == [1, 1]


def test_a_block_with_products_in_float8_is_one_graph():
    network = build_denoiser(CONFIG, ParallelContext.current(), seed=1).train()
    plain = step(network)
    use_float8(network, "hybrid", ParallelContext.current())
    wanted = step(network)
    with pytest.raises(AssertionError):
        assert_close(wanted, plain)
    block = network.transformer_blocks[1][1]
    block.forward = torch.compile(block.forward, backend="aot_eager", fullgraph=True)
    assert_close(step(network), wanted)


def test_every_block_is_one_graph_at_changing_lengths():
    """With a backend that only traces: a break in a graph is an error, since `compile_blocks` asks for whole ones."""
    parallel = ParallelContext.current()
    config = dataclasses.replace(CONFIG, num_layers=(1, 2, 1))  # one of each kind of block
    network = build_denoiser(config, parallel, seed=1, recompute_feed_forwards=1).train()
    names = list(network.state_dict())
    lengths = [(2, 5), (3, 7)]
    wanted = [step(network, *length) for length in lengths]
    network.compile_blocks(backend="eager")
    for length, numbers in zip(lengths, wanted, strict=True):
        assert_close(step(network, *length), numbers)
    assert list(network.state_dict()) == names


def test_a_block_with_adapters_is_one_graph_that_recomputes_its_feed_forward():
    """All of inductor but its code, as above, in three steps. DoRA holds all that LoRA has, and nf4 all that int8 has: the
    graph unpacks its weights, in the backward pass again.
    """
    parallel = ParallelContext.current()
    network = build_denoiser(CONFIG, parallel, seed=1).train()
    targets = ("attention", "feed_forward", "modulation")
    adapter = AdapterConfig(kind="dora", rank=2, targets=targets, base_weights="nf4")
    hold_base(network, CONFIG, adapter, torch.device("cpu"), Copies())
    for branch in attach_trained(network, CONFIG, adapter, parallel, seed=2).values():
        torch.nn.init.normal_(branch.lora_B, generator=torch.Generator().manual_seed(3))  # or A has no gradient
    block = network.transformer_blocks[1][1]
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    begin = [parameter.detach().clone() for parameter in trained]
    streams = [torch.randn(tokens, 1, 32, generator=torch.Generator().manual_seed(tokens)) for tokens in (30, 5)]
    others = torch.ones(1, 16), rope3d.tables((2, 3, 5), CONFIG.head_dim), None, True
    kept = []

    def results() -> list[torch.Tensor]:
        found = []
        torch._foreach_copy_([parameter.data for parameter in trained], begin)
        for _ in range(3):
            with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
                video, text = block(*streams, *others)
            gradients = torch.autograd.grad(video.square().sum() + text.sum(), trained)
            torch._foreach_add_([parameter.data for parameter in trained], gradients, alpha=-1e-3)
            found += [video.detach(), *gradients]
        return found

    wanted = results()
    kept.clear()
    block.forward = torch.compile(block.forward, fullgraph=True, backend="aot_eager_decomp_partition")
    assert_close(results(), wanted)
    wide = [shape for shape in kept if shape[0] in (30, 5) and shape[-1] == 4 * 32]
    assert (30, 1, 32) in kept and not wide

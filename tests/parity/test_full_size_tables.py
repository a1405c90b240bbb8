"""Names and shapes of the full 8.5 B denoiser at TP 1, 2, 4 and 8, built on the meta device in a group of no-op ranks."""

import json
import multiprocessing

import pytest

from mindspeed_mm.families.sparse_ummdit import text_tail

# The predictor block of model_opensoraplan1_5.json as published.
V1_5 = {
    "model_id": "SparseUMMDiT",
    "num_layers": [2, 4, 6, 8, 6, 4, 2],
    "sparse_n": [1, 2, 4, 8, 4, 2, 1],
    "double_ff": True,
    "sparse1d": True,
    "num_heads": 24,
    "head_dim": 128,
    "in_channels": 32,
    "out_channels": 32,
    "timestep_embed_dim": 1024,
    "caption_channels": 2048,
    "pooled_projection_dim": 1280,
    "skip_connection": True,
    "dropout": 0.0,
    "attention_bias": True,
    "patch_size": 2,
    "patch_size_t": 1,
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "from_pretrained": None,
}
LAST_BLOCK = "transformer_blocks.6.1"


def tables(queue) -> None:
    """Put {name of the golden table: {key: shape or None}} and the number of parameters per rank."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
    from mindspeed_mm.models.build import build_denoiser
    from mindspeed_mm.parallel.context import ParallelContext
    from mindspeed_mm.schema import build, node_from_python

    config = build(SparseUMMDiTConfig, node_from_python(V1_5, "predictor"))
    result = {}
    for size, rank in [(1, 0), (2, 0), (2, 1), (4, 0), (4, 3), (8, 0), (8, 7)]:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
        parallel = ParallelContext.start(backend="fake", tensor_size=size)
        network = build_denoiser(config, parallel, device="meta", seed=None)
        state = network.state_dict()
        shapes = {key: None if value is None else list(value.shape) for key, value in state.items()}
        count = sum(parameter.numel() for parameter in network.parameters())
        assert all(isinstance(parameter.data, torch.Tensor) and parameter.is_meta for parameter in network.parameters())
        result["tp1" if size == 1 else f"tp{size}_rank{rank}"] = (shapes, count)
        parallel.stop()
    queue.put(result)


@pytest.fixture(scope="module")
def found():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=tables, args=(queue,))
    process.start()
    result = queue.get(timeout=120)
    process.join()
    return result


@pytest.mark.parametrize("table", ["tp1", "tp2_rank0", "tp2_rank1", "tp4_rank0", "tp4_rank3", "tp8_rank0", "tp8_rank7"])
def test_names_and_shapes(golden, found, table):
    wanted = json.loads(golden("predictor/shapes_full_v1_5.json").read_text())[table]
    shapes, _ = found[table]
    extras = set(wanted) - set(shapes)
    tail = set(text_tail([f"{LAST_BLOCK}.norm1.linear.weight"])) if table != "tp1" else set()
    assert {key for key in extras if wanted[key] is not None} == tail
    assert all(key.endswith("._extra_state") for key in extras - tail)
    assert {key: value for key, value in wanted.items() if key not in extras} == shapes


def test_number_of_parameters(found):
    """The original's counts; its ranks own the text tail of the last block as well where TP > 1."""
    tail = {1: 0}
    for size in (2, 4, 8):
        tail[size] = 3072 * 3072 // size + 3072 + 2 * 3072 + 2 * 4 * 3072 * 3072 // size
    original = {
        "tp1": 8_504_661_120,
        "tp2_rank0": 4_357_713_024,
        "tp4_rank0": 2_241_767_040,
        "tp8_rank0": 1_183_794_048,
    }
    for table, count in original.items():
        size = int(table[2])
        assert found[table][1] == count - tail[size], table

"""The published 8.5 B denoiser at TP=8 and the 227 M autoencoder on a simulated NPU: shapes and kernels, no numbers."""

import collections
import contextlib
from pathlib import Path

import torch
import torch.distributed as dist
from simulation.device import OnHost
from simulation.trace import Trace
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mindspeed_mm.config.model import DiffusionConfig, TrainModelConfig
from mindspeed_mm.config.run import OptimizerSettings
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.models.build import build_autoencoder, build_denoiser
from mindspeed_mm.models.denoiser import Conditions
from mindspeed_mm.models.sparse_ummdit import attention as joint_attention
from mindspeed_mm.ops import attention as attention_ops
from mindspeed_mm.ops import norms, rope3d
from mindspeed_mm.optim.adaptive_clip import AdaptiveClip
from mindspeed_mm.optim.ema import Ema
from mindspeed_mm.optim.step import OptimizerStep
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.engine import Engine
from mindspeed_mm.parallel.megatron import parallel_state
from mindspeed_mm.parallel.megatron_engine import MegatronEngine
from mindspeed_mm.platforms.npu import NpuPlatform
from mindspeed_mm.schema import build, read_json
from mindspeed_mm.training.denoising import Denoising
from mindspeed_mm.training.encoders import Encoded
from mindspeed_mm.training.step import TrainStep
from mindspeed_mm.training.task import FlowMatchingTask
from mindspeed_mm.types import TextFeatures

MODEL = Path(__file__).resolve().parents[2] / "examples" / "opensoraplan1.5" / "model_opensoraplan1_5.json"
TENSOR_PARALLEL = 8
LATENTS = (1, 32, 16, 72, 128)  # of 121 frames of 576x1024: 36864 tokens
EXTENT = (16, 36, 64)
TOKENS = 16 * 36 * 64
WORDS = 512
SMALL = 1 << 16  # operators on tensors up to this size are computed: masks, lengths, scalars
RECOMPUTED = 32  # feed-forwards, as the launch script


class Features:
    """Stored features of one made-up clip, in place of the encoders; its caption has 100 words."""

    def __init__(self, config: SparseUMMDiTConfig, device: torch.device):
        text = TextFeatures(
            torch.zeros(1, WORDS, config.caption_channels),
            torch.arange(WORDS)[None] < 100,
            torch.zeros(1, config.pooled_projection_dim),
        )
        keep = torch.ones(1, *LATENTS[2:], dtype=torch.bool)
        self.sample = Encoded(
            torch.zeros(LATENTS).to(device), Conditions(text.to(device)), keep.to(device), ((0, 0),), ("clip",)
        )

    def __call__(self, batch: None) -> Encoded:
        return self.sample


def one_of_eight() -> ParallelContext:
    """This process as rank 0 of TP=8. The other ranks do not exist: their part of a collective is never written."""
    dist.distributed_c10d._store_based_barrier = lambda *arguments, **options: None
    dist.init_process_group("npu:hccl", store=dist.HashStore(), rank=0, world_size=TENSOR_PARALLEL)
    parallel = ParallelContext.start(backend="fake", tensor_size=TENSOR_PARALLEL, sequence_parallel=True)
    for name in [name for name in vars(parallel_state) if name.endswith("_GLOO")]:
        setattr(parallel_state, name, parallel.data)  # gloo would look for the others; nothing is sent over these
    dist.all_gather_object = all_gather_alone
    return parallel


def all_gather_alone(everyone: list, mine, group: dist.ProcessGroup | None = None) -> None:
    everyone[:] = [mine] * len(everyone)


def model_config() -> TrainModelConfig:
    return build(TrainModelConfig, read_json(MODEL))


def kernels(fused: bool, whole_step: bool) -> dict[str, dict]:
    """Kernels of "block" (one, forward and backward), and of "step" (of the whole denoiser) and the "update" in it.

    Each is {kernel: launches}; "operands" is {kernel and its operands: launches} of the block. fused: False takes the
    plain twins. whole_step: False leaves "step" and "update" out.
    """
    platform = NpuPlatform("off")
    device = platform.device(0)
    parallel, config = one_of_eight(), model_config().predictor
    with contextlib.nullcontext() if fused else plain_twins(), OnHost(largest=SMALL):
        network = build_denoiser(
            config, parallel, device=device, dtype="bf16", seed=None, recompute_feed_forwards=RECOMPUTED
        ).train()
        engine = None
        if whole_step:
            platform.fused_adamw = fused
            engine = MegatronEngine(
                network, parallel, platform, OptimizerSettings(use_distributed_optimizer=True, lr_decay_iters=1)
            )
        block = block_kernels(network, device)
        operands = collections.Counter(" ".join((kernel.name, *kernel.operands)) for kernel in block.kernels)
        found = {"block": block.counts(), "operands": dict(operands)}
        return found | (step_kernels(engine, config, device) if whole_step else {})


def step_kernels(engine: Engine, config: SparseUMMDiTConfig, device: torch.device) -> dict[str, dict]:
    engine.schedule(1)
    optimizer = OptimizerStep(engine, AdaptiveClip(0.99), Ema(engine, 0.9999), 5)
    task = FlowMatchingTask(DiffusionConfig(), config, 0)
    step = TrainStep(engine, Denoising(Features(config, device), task), optimizer, 1)
    with Trace() as whole:
        step(iter([None]))
    engine.finish_gradients()
    with Trace() as update:
        engine.update()
        optimizer.ema.update()
    return {"step": whole.counts(), "update": update.counts()}


def block_inputs(config: SparseUMMDiTConfig, device: torch.device) -> tuple:
    """Video, text, condition and rope of a block, as this rank holds them."""
    width = config.hidden_size
    return (
        torch.empty(TOKENS // TENSOR_PARALLEL, 1, width, dtype=torch.bfloat16, device=device, requires_grad=True),
        torch.empty(WORDS // TENSOR_PARALLEL, 1, width, dtype=torch.bfloat16, device=device, requires_grad=True),
        torch.empty(1, config.timestep_embed_dim, device=device, requires_grad=True),
        rope3d.tables(EXTENT, config.head_dim, device=device),
    )


def block_kernels(network, device: torch.device) -> Trace:
    """One block of sparsity 8, group skip, forward and backward with its feed-forward recomputed."""
    block = network.transformer_blocks[3][1]
    sparsity = block.pattern[0]
    inputs = block_inputs(network.config, device)
    keep = torch.ones(sparsity, TOKENS // sparsity + WORDS, dtype=torch.bool)
    keep[:, TOKENS // sparsity + 100 :] = False
    keys = attention_ops.real_keys(keep, device)
    with Trace() as trace:
        out = block(*inputs, keys, True)
        torch.autograd.backward(out, [torch.empty_like(part) for part in out])
    assert [part.shape for part in out] == [part.shape for part in inputs[:2]]
    assert all(part.grad.shape == part.shape for part in inputs[:3])
    return trace


def plain_attend(q: Tensor, k: Tensor, v: Tensor, keys: attention_ops.RealKeys | None) -> Tensor:
    return attention_ops.plain_attend(q, k, v, None if keys is None else keys.keep)


@contextlib.contextmanager
def plain_twins():
    """The operators of `ops/` as other devices run them; attention stays torch's own."""
    twins = [
        (norms, "rms_norm", norms.plain_rms_norm),
        (norms, "layer_norm", norms.plain_layer_norm),
        (rope3d, "rotate", rope3d.plain_rotate),
        (joint_attention, "rotate", rope3d.plain_rotate),
        (joint_attention, "attend", plain_attend),
    ]
    patched = [twin for twin in twins if hasattr(twin[0], twin[1])]
    before = [getattr(module, name) for module, name, _ in patched]
    for module, name, function in patched:
        setattr(module, name, function)
    try:
        yield
    finally:
        for (module, name, _), function in zip(patched, before, strict=True):
            setattr(module, name, function)


def fake_blocks() -> dict[str, tuple[list[int], list[str]]]:
    """FakeTensors: first, sparse and last block: the output's shape, and the names of parameters without a gradient like them."""
    device = NpuPlatform("off").device(0)
    parallel, config = one_of_eight(), model_config().predictor
    network = build_denoiser(config, parallel, device=device, dtype="bf16", seed=None).train()
    found = {}
    for name in ("transformer_blocks.0.0", "transformer_blocks.3.1", "transformer_blocks.6.1"):
        block = network.get_submodule(name)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            make_fake(block, mode)
            # The number of real keys is data, which a FakeTensor has not: every key is real here.
            inputs = block_inputs(config, device)
            video, text = block(*inputs, None)
            assert video.device == text.device == device
            (video.float().sum() + text.float().sum()).backward()
            missing = [name for name, p in block.named_parameters() if not is_like(p.grad, p)]
        found[name] = (list(video.shape), missing)
    return found


def fake_autoencoder() -> tuple[int, list[int], list[int]]:
    """FakeTensors: parameters, and shapes of the latents of 17 frames of 512x512 and of the video that they give."""
    device = NpuPlatform("off").device(0)
    vae = build_autoencoder(model_config().ae, device=device, dtype="bf16")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        make_fake(vae, mode)
        mean, _ = vae.encode_moments(torch.zeros(1, 3, 17, 512, 512, device=device))
        video = vae.decode_unscaled(mean)
        assert mean.device == video.device == device
        return sum(p.numel() for p in vae.parameters()), list(mean.shape), list(video.shape)


def make_fake(network: torch.nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by FakeTensors: the same but for their memory."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.nn.Parameter(mode.from_tensor(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = fake
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else mode.from_tensor(buffer)


def is_like(gradient: torch.Tensor | None, parameter: torch.Tensor) -> bool:
    if gradient is None:
        return False
    facts = ("shape", "dtype", "device")
    return all(getattr(gradient, fact) == getattr(parameter, fact) for fact in facts)

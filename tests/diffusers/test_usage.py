"""What users of diffusers do with a pipeline works, and changes no frame that it must not change."""

import json

import accelerate
import numpy as np
import pytest
import torch
from diffusers import FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig, TorchAoConfig
from diffusers.hooks import TaylorSeerCacheConfig, apply_group_offloading
from eight_bits import PROMPT, SEED, as_uint8
from peft import LoraConfig
from safetensors.torch import save_file


@pytest.fixture
def base(frames) -> np.ndarray:
    """The frames of the plain pipeline."""
    return frames()


# --------------------------------------------------------------------------------------------------- memory and speed


def test_model_offload(pipeline, frames, base):
    pipeline.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(frames(), base)
    assert np.array_equal(frames(), base)  # the hooks have moved everything, and move it again


def test_sequential_offload(pipeline, frames, base):
    """What diffusers does to each component, T5 and CLIP as well: a module has its weights in its own forward pass alone."""
    cpu = torch.device("cpu")
    video = torch.rand((1, 3, 9, 32, 32), generator=torch.manual_seed(0))
    with torch.no_grad():
        encoded = pipeline.vae.encode(video).latent_dist.mean
    for part in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.transformer, pipeline.vae):
        accelerate.cpu_offload(part, cpu, offload_buffers=len(part._parameters) > 0)
        assert all(parameter.is_meta for parameter in part.parameters())
    for _ in range(2):
        assert np.array_equal(frames(), base)
    with torch.no_grad():
        assert torch.equal(pipeline.vae.encode(video).latent_dist.mean, encoded)


def test_sequential_offload_to_where_it_computes_is_refused(pipeline):
    """diffusers would call the device cpu:0, to which torch copies a tensor that is there already, as accelerate does not expect."""
    weight = torch.nn.Parameter(torch.zeros(1))
    assert isinstance(weight.to("cpu"), torch.nn.Parameter) and not isinstance(weight.to("cpu:0"), torch.nn.Parameter)
    with pytest.raises(ValueError, match="device cpu; it offloads to the CPU, name an accelerator"):
        pipeline.enable_sequential_cpu_offload(device="cpu")


@pytest.mark.parametrize(
    "how", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_group_offloading(pipeline, frames, base, how):
    cpu = torch.device("cpu")
    pipeline.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, **how)
    apply_group_offloading(pipeline.vae, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    assert np.array_equal(frames(), base)


def test_layerwise_casting(pipeline, frames, base):
    for part in (pipeline.transformer, pipeline.vae):
        part.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = pipeline.transformer.transformer_blocks[0][0]
    assert stored.attn1.to_q.weight.dtype == stored.ff.net[2].weight.dtype == torch.float8_e4m3fn
    assert stored.norm1.linear.weight.dtype == pipeline.transformer.patch_embed.proj.weight.dtype == torch.float32
    apart = np.abs(frames().astype(int) - base)
    assert 0 < apart.mean() < 12  # of 255, with three bits of mantissa


@pytest.mark.parametrize(
    ("config", "tensor", "most"),
    [
        ("Int8WeightOnlyConfig", "Int8Tensor", 2),
        ("Float8WeightOnlyConfig", "Float8Tensor", 12),
    ],
)
def test_fewer_bits_of_torchao(folder, pipeline, frames, base, config, tensor, most):
    """Three bits of mantissa cost more than int8's steps."""
    from torchao import quantization

    from mindspeed_mm.diffusers import SparseUMMDiTTransformer3DModel

    pipeline.transformer = SparseUMMDiTTransformer3DModel.from_pretrained(
        folder / "transformer",
        quantization_config=TorchAoConfig(getattr(quantization, config)()),
        torch_dtype=torch.float32,
    )
    assert type(pipeline.transformer.transformer_blocks[0][0].attn1.to_q.weight).__name__ == tensor
    apart = np.abs(frames().astype(int) - base)
    assert 0 < apart.mean() < most  # of 255


def test_the_transformer_is_one_graph(pipeline, frames, base):
    """fullgraph: no operation that the compiler cannot see, and nothing that depends on values of tensors."""
    pipeline.transformer.compile(fullgraph=True, backend="eager")
    apart = np.abs(frames().astype(int) - base)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_attention_backends(pipeline, frames, base, backend):
    pipeline.transformer.set_attention_backend(backend)
    used = {str(processor._attention_backend.value) for processor in pipeline.transformer.attn_processors.values()}
    assert used == {backend} and len(pipeline.transformer.attn_processors) == 6
    try:
        apart = np.abs(frames().astype(int) - base)
    finally:
        pipeline.transformer.reset_attention_backend()
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


# -------------------------------------------------------------------------------------------------------------- caches

_EACH = r"transformer_blocks\.\d+\.\d+\.attn1"
CACHES = {
    "first block": lambda pipeline: FirstBlockCacheConfig(threshold=10.0),
    "pyramid": lambda pipeline: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: pipeline.current_timestep,
    ),
    "TaylorSeer": lambda pipeline: TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1, taylor_factors_dtype=torch.float32, cache_identifiers=[_EACH]
    ),
    "faster": lambda pipeline: FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        unconditional_batch_skip_range=2,
        unconditional_batch_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("transformer_blocks",),
        attention_weight_callback=lambda module: 0.3,
        tensor_format="BCFHW",
        current_timestep_callback=lambda: pipeline.current_timestep,
    ),
}


@pytest.mark.parametrize("name", CACHES)
def test_caches(pipeline, frames, base, name):
    """They leave work out, and stay near; without them the frames are as before."""
    calls = []
    parts = [block.ff for stage in pipeline.transformer.transformer_blocks for block in stage]
    parts += [block.attn1.to_q for stage in pipeline.transformer.transformer_blocks for block in stage]
    for part in parts:
        part.register_forward_hook(lambda module, inputs, output: calls.append(output.shape[1]))
    frames()
    whole = sum(calls)
    calls.clear()
    pipeline.transformer.enable_cache(CACHES[name](pipeline))
    found = frames()
    assert sum(calls) < whole
    apart = np.abs(found.astype(int) - base).mean()
    assert 0 < apart < 30, apart
    pipeline.transformer.disable_cache()
    assert np.array_equal(frames(), base)


# ------------------------------------------------------------------------------------------------------------ adapters


@pytest.fixture
def adapter(pipeline, tmp_path):
    """A folder as PEFT writes it, whose alpha is twice its rank."""
    from peft import get_peft_model

    torch.manual_seed(0)
    settings = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False)
    network = get_peft_model(pipeline.transformer, settings)
    network.save_pretrained(tmp_path / "adapter")
    network.unload()
    return tmp_path / "adapter"


def test_an_adapter_of_peft(pipeline, frames, base, adapter):
    pipeline.load_lora_weights(adapter, adapter_name="style")
    assert pipeline.get_active_adapters() == ["style"]
    with_it = frames()
    assert not np.array_equal(with_it, base)
    # alpha / r is read from adapter_config.json
    layer = pipeline.transformer.transformer_blocks[0][0].attn1.to_q
    assert layer.scaling["style"] == 2.0
    pipeline.set_adapters("style", 0.0)
    assert np.array_equal(frames(), base)
    pipeline.set_adapters("style", 1.0)
    pipeline.fuse_lora()
    assert np.abs(frames().astype(int) - with_it).max() <= 1
    pipeline.unfuse_lora()  # by subtraction, which rounds
    pipeline.unload_lora_weights()
    assert np.abs(frames().astype(int) - base).max() <= 1


def test_an_adapter_of_diffusers_and_its_scale(pipeline, frames, base, adapter, tmp_path):
    from safetensors.torch import load_file

    state = load_file(adapter / "adapter_model.safetensors")
    assert json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"] == 4
    save_file(
        {name.replace("base_model.model", "transformer"): value for name, value in state.items()},
        tmp_path / "a.safetensors",
    )
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    assert not np.array_equal(frames(), base)
    assert np.array_equal(frames(attention_kwargs={"scale": 0.0}), base)


# ------------------------------------------------------------------------------------------------------------ the call


def test_a_batch_of_prompts_is_its_samples(frames):
    prompts = ["a red circle", "a blue square moving up"]
    together = frames(prompt=prompts, num_videos_per_prompt=2, seed=None, generator=torch.manual_seed(1))
    assert together.shape == (4, 9, 32, 32, 3)
    noise = torch.randn((4, 4, 2, 4, 4), generator=torch.manual_seed(1))
    for number in range(4):
        alone = frames(prompt=prompts[number // 2], seed=None, latents=noise[number : number + 1])
        apart = np.abs(together[number].astype(int) - alone[0])
        assert apart.max() <= 1 and (apart > 0).mean() < 1e-2


def test_latents_go_out_and_in(pipeline, frames, base):
    latents = pipeline("a red circle", seed=3, output_type="latent").frames
    assert np.array_equal((pipeline.decode_latents(latents, "np") * 255).round().astype(np.uint8), base)
    with pytest.raises(ValueError, match=r"latents \[1, 4, 2, 4, 3\]: need \[1, 4, 2, 4, 4\]"):
        frames(latents=latents[..., :3])


def test_embeds_instead_of_a_prompt(pipeline, frames, base):
    names = ("prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds")
    features = pipeline.encode_prompt("a red circle")
    given = dict(zip((*names, *(f"negative_{name}" for name in names)), features, strict=True))
    assert np.array_equal(frames(prompt=None, **given), base)
    del given["negative_pooled_prompt_embeds"]
    with pytest.raises(ValueError, match="negative ones too"):
        frames(prompt=None, **given)


def test_a_callback_sees_each_step_and_changes_it(pipeline, frames, base):
    seen = []

    def look(pipe, step, timestep, values):
        seen.append((step, float(timestep), *values))
        return values

    assert np.array_equal(frames(callback_on_step_end=look), base)
    assert [step for step, *_ in seen] == [0, 1, 2, 3] and seen[0][1] == 1000.0 and seen[0][2:] == ("latents",)

    def stop(pipe, step, timestep, values):
        pipe._interrupt = step == 1
        return {}

    assert not np.array_equal(frames(callback_on_step_end=stop), base)

    def forget(pipe, step, timestep, values):
        return {"prompt_embeds": values["negative_prompt_embeds"]}

    names = ["prompt_embeds", "negative_prompt_embeds"]
    changed = frames(callback_on_step_end=forget, callback_on_step_end_tensor_inputs=names)
    assert not np.array_equal(changed, base)
    with pytest.raises(ValueError, match="noise.*not among"):
        frames(callback_on_step_end=look, callback_on_step_end_tensor_inputs=["noise"])


def test_a_callback_changes_guidance_and_turns_it_off(pipeline, frames, base):
    def scaled(at, scale):
        def call(pipe, step, timestep, values):
            if step == at:
                pipe._guidance_scale = scale
            return {}

        return call

    assert np.array_equal(frames(callback_on_step_end=scaled(3, 1.0)), base)  # behind the last step
    assert pipeline.guidance_scale == 1.0
    off = frames(callback_on_step_end=scaled(0, 1.0))
    in_parts = frames(callback_on_step_end=scaled(0, 1.0), sequential_guidance=True)
    assert not np.array_equal(off, base) and not np.array_equal(off, frames(callback_on_step_end=scaled(0, 9.0)))
    assert np.abs(off.astype(int) - in_parts).max() <= 1
    with pytest.raises(ValueError, match="a callback turned guidance on"):
        frames(guidance_scale=1.0, callback_on_step_end=scaled(0, 3.0))


def test_a_pipeline_is_made_from_another_one(pipeline, frames, base):
    again = type(pipeline).from_pipe(pipeline)
    again.set_progress_bar_config(disable=True)
    assert again.transformer is pipeline.transformer and again.defaults == pipeline.defaults
    frames_again = again(PROMPT, seed=SEED, output_type="np").frames
    assert np.array_equal(as_uint8(frames_again), base)


def test_tiling_and_slicing_of_the_autoencoder(pipeline):
    vae = pipeline.vae
    z = torch.randn((2, 4, 2, 16, 16), generator=torch.manual_seed(0))
    with torch.no_grad():
        whole = vae.decode(z).sample
        vae.enable_slicing()
        assert torch.allclose(vae.decode(z).sample, whole, atol=1e-5)
        vae.enable_tiling(tile_size=96, overlap=48)
        tiled = vae.decode(z).sample
        assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
        assert (tiled - whole).abs().mean() < 0.1 * whole.abs().mean()
        vae.disable_tiling()
        assert torch.allclose(vae.decode(z).sample, whole, atol=1e-5)
        video = whole.clamp(-1, 1)
        mode = vae.encode(video).latent_dist.mode()
        assert mode.shape == z.shape

"""Clips in chunks against clips taken whole; calls leave nothing behind; what lies where in memory."""

import dataclasses

import pytest
import torch
from small_vae import TINY_8, make_vae, random_latents, random_video, whole

from mindspeed_mm.models.wfvae import WFVAE
from mindspeed_mm.models.wfvae.causal_conv import CausalConv3d
from mindspeed_mm.models.wfvae.layers import ResidualBlock3D


@pytest.mark.parametrize("latents", [3, 4, 5, 6, 7, 9, 11])
def test_encoding_in_chunks_equals_encoding_whole(vae, latents):
    video = random_video((latents - 1) * vae.strides[0] + 1)
    with torch.no_grad():
        for chunked, uncut in zip(vae.encode_moments(video), whole(vae).encode_moments(video), strict=True):
            torch.testing.assert_close(chunked, uncut, atol=1e-5, rtol=0)


@pytest.mark.parametrize("latents", [3, 4, 5, 6, 7, 9, 11])
def test_decoding_in_chunks_equals_decoding_whole(vae, latents):
    z = random_latents(latents)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(z), whole(vae).decode(z), atol=1e-5, rtol=0)


def test_nearest_interpolation_in_chunks_equals_whole():
    vae, z = make_vae(dataclasses.replace(TINY_8, t_interpolation="nearest")), random_latents(7)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(z), whole(vae).decode(z), atol=1e-5, rtol=0)


@pytest.mark.parametrize("latents", [1, 2])
def test_images_and_short_clips_pass_whole_with_tiling(vae, latents):
    video = random_video((latents - 1) * vae.strides[0] + 1, batch=2)
    with torch.no_grad():
        mean, _ = vae.encode_moments(video)
        assert torch.equal(mean, whole(vae).encode_moments(video)[0])
        assert torch.equal(vae.decode(mean), whole(vae).decode(mean))


def test_no_module_sees_more_than_a_chunk(vae8):
    """A long clip costs the memory of a chunk: 8 frames in, 2 latents; frame 0 goes with the first ones."""
    lengths = []
    handles = [
        vae8.encoder.register_forward_pre_hook(lambda module, arguments: lengths.append(arguments[0].shape[2])),
        vae8.decoder.register_forward_pre_hook(lambda module, arguments: lengths.append(arguments[0].shape[2])),
    ]
    with torch.no_grad():
        vae8.decode(vae8.encode(random_video(49)))
    for handle in handles:
        handle.remove()
    assert lengths == [9, 8, 8, 8, 8, 8] + [3, 2, 2]


def snapshot(vae):
    """Everything that hangs on the modules: tensors by value, the rest by its representation."""
    rest = {
        (path, key): repr(value)
        for path, module in vae.named_modules()
        for key, value in vars(module).items()
        if key not in ("_parameters", "_buffers", "_modules")
    }
    tensors = {name: tensor.clone() for name, tensor in (*vae.named_parameters(), *vae.named_buffers())}
    return rest, tensors


def test_calls_leave_nothing_on_the_modules(vae):
    rest, tensors = snapshot(vae)
    with torch.no_grad():
        for latents in (5, 3, 1, 6):
            vae.decode(vae.encode(random_video((latents - 1) * vae.strides[0] + 1)))
    after_rest, after_tensors = snapshot(vae)
    assert after_rest == rest
    assert after_tensors.keys() == tensors.keys()
    assert all(torch.equal(after_tensors[name], tensor) for name, tensor in tensors.items())


def test_lengths_and_sizes_may_follow_each_other_in_any_order(vae):
    fresh = make_vae(vae.config)
    clips = [random_video(n * vae.strides[0] + 1, height, seed=n) for n, height in ((4, 16), (2, 24), (0, 16), (5, 16))]
    with torch.no_grad():
        alone = [fresh.encode_moments(clip)[0] for clip in clips]
        for clip, expected in zip([*clips, *clips[::-1]], [*alone, *alone[::-1]], strict=True):
            assert torch.equal(vae.encode_moments(clip)[0], expected)
            decoded = vae.decode(expected)
            assert decoded.shape == clip.shape


def test_a_failed_call_does_not_disturb_the_next(vae8):
    video = random_video(33)
    with torch.no_grad():
        expected = vae8.encode_moments(video)[0]
        calls = []

        def fail(module, arguments):
            calls.append(0)
            if len(calls) == 3:
                raise RuntimeError("out of memory")

        handle = vae8.encoder.mid.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            vae8.encode_moments(video)
        handle.remove()
        assert torch.equal(vae8.encode_moments(video)[0], expected)


def test_gradients_in_chunks_equal_gradients_whole(vae):
    gradients = []
    for tiling in (False, True):
        network = WFVAE(dataclasses.replace(vae.config, use_tiling=tiling)).eval()
        network.load_state_dict(vae.state_dict())
        network.decode(network.encode_moments(random_video(4 * vae.strides[0] + 1))[0]).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    for name, uncut in gradients[0].items():
        scale = uncut.abs().max().item()
        torch.testing.assert_close(gradients[1][name], uncut, atol=1e-4 * scale + 1e-7, rtol=0, msg=name)


def test_on_a_cpu_channels_stay_next_to_each_other(vae8):
    """A part that gave another layout would have everything behind it copied."""
    others = []

    def look(name):
        def hook(module, arguments, output):
            video = output[0] if isinstance(output, tuple) else output
            if not video.is_contiguous(memory_format=torch.channels_last_3d):
                others.append(name)

        return hook

    parts = [(name, part) for name, part in vae8.named_modules() if isinstance(part, CausalConv3d | ResidualBlock3D)]
    handles = [part.register_forward_hook(look(name)) for name, part in parts]
    with torch.no_grad():
        vae8.decode(vae8.encode(random_video(49, batch=2)))
    for handle in handles:
        handle.remove()
    assert not others

"""Transforms against the original's outputs."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_mm.config.transforms import read_transforms
from mindspeed_mm.data.decode.resize import BandCache, Resizer
from mindspeed_mm.data.decode.transforms import build_pipeline, resize
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import node_from_python


def pipeline(*steps):
    named = [step if isinstance(step, dict) else {"trans_type": step} for step in steps]
    return build_pipeline(read_transforms(node_from_python(named, "video"), None))


def flip(p):
    return {"trans_type": "RandomHorizontalFlipVideo", "param": {"p": p}}


def test_every_golden_case(golden):
    cases = json.loads(golden("data/transforms.json").read_text())["cases"]
    tensors = load_file(golden("data/transforms.safetensors"))
    assert len(cases) == 23
    for case in cases:
        transform = pipeline(*case["steps"])
        out = transform(tensors[f"{case['id']}.in"], random.Random(0))
        assert out.dtype == torch.float32
        assert (out - tensors[f"{case['id']}.out"]).abs().max() <= 1e-5, case
        assert list(transform.output_size(*case["in_shape"][-2:])) == case["out_shape"][-2:]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_resize_kernel_is_the_one_of_the_specification(mode):
    """Scale (n-1)/(m-1) with centres at s(i+0.5) (docs/parity.md: resize), written out here for one axis."""
    line = torch.rand(1, 1, 1, 29, generator=torch.Generator().manual_seed(0))
    for size in (12, 29, 47):
        scale = 28 / (size - 1)
        half = {"bilinear": 1, "bicubic": 2}[mode]
        support, stretch = (half * scale, 1 / scale) if scale >= 1 else (half, 1.0)
        expected = []
        for i in range(size):
            center = scale * (i + 0.5)
            low, high = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), 29)
            weights = torch.tensor([kernel(mode, (j - center + 0.5) * stretch) for j in range(low, high)])
            expected.append((weights / weights.sum() @ line[0, 0, 0, low:high]).item())
        out = resize(line, 1, size, mode)[0, 0, 0]
        assert (out - torch.tensor(expected)).abs().max() < 1e-5


def kernel(mode: str, x: float) -> float:
    x = abs(x)
    if mode == "bilinear":
        return max(0.0, 1 - x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


SIZES = [
    ((1080, 1920), (576, 1024)),
    ((720, 1280), (576, 1024)),
    ((480, 832), (576, 1024)),  # upwards
    ((101, 64), (101, 40)),  # one axis keeps its size
    ((37, 5), (16, 48)),
    ((9, 300), (1, 32)),
]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "to"), SIZES)
def test_the_fast_resize_equals_torchs(size, to, mode):
    draw = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (size[0] + 6, size[1] + 4, 3), dtype=torch.uint8, generator=draw)
    frame = frame[5:-1, 3:-1]  # a crop of a larger picture, as the reader hands it on
    resizer = Resizer(size, to, mode, BandCache(), factor=2 / 255, plus=-1.0)
    for planes in (frame.unbind(2), frame.float().flip(1).unbind(2)):  # the second time with used buffers
        expected = resize(torch.stack(planes)[None].float() / 127.5 - 1, *to, mode)[0]
        assert (torch.stack(resizer(planes)) - expected).abs().max() <= 2e-6


def test_the_cache_of_weights_is_bounded():
    cache = BandCache(limit=4)
    for size in range(10, 40):
        assert cache.get(size, 8, "bicubic", 16)[-1].high == size
        assert len(cache._known) <= 4


def test_steps_in_any_order_are_what_torch_makes_of_them_one_by_one():
    video = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    fit = {"trans_type": "LongSideResizeVideo", "param": {"size": [40, 40], "interpolation_mode": "bicubic"}}
    crop = {"trans_type": "CenterCropResizeVideo", "param": {"size": [16, 32], "interpolation_mode": "bilinear"}}
    norm = {"trans_type": "norm_fun", "param": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.2, 1.0]}}
    out = pipeline("ToTensorVideo", flip(1.0), fit, norm, crop, "ae_norm")(video, random.Random(0))
    step = resize((video.float() / 255).flip(-1), 28, 40, "bicubic")
    step = (step - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.2, 1.0]).view(3, 1, 1)
    step = resize(step[..., 4:24, :], 16, 32, "bilinear") * 2 - 1
    assert (out - step).abs().max() <= 1e-5
    # bytes in front of ToTensorAfterResize stay bytes, rounded by torch
    out = pipeline(crop, "ToTensorAfterResize")(video, random.Random(0))
    assert torch.equal(out, resize(video[..., 8:43, :].contiguous(), 16, 32, "bilinear") / 255)


def test_arithmetic_is_done_once_where_the_last_resize_has_nothing_to_do():
    video = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)
    steps = [{"trans_type": "CenterCropResizeVideo", "param": {"size": [16, 32], "interpolation_mode": "bicubic"}}] * 2
    out = pipeline("ToTensorVideo", *steps, "ae_norm")(video, random.Random(0))
    expected = pipeline("ToTensorVideo", steps[0], "ae_norm")(video, random.Random(0))
    assert (out - expected).abs().max() <= 2e-6


def test_a_clip_is_flipped_as_a_whole_and_by_its_own_random_numbers():
    video = torch.randint(0, 256, (20, 3, 4, 6), dtype=torch.uint8)
    plain = video.float() / 255
    mirrored = 0
    for seed in range(40):
        out = pipeline("ToTensorVideo", flip(0.3))(video, random.Random(seed))
        expected = random.Random(seed).random() < 0.3
        mirrored += expected
        assert torch.equal(out, plain.flip(-1) if expected else plain)
    assert 0 < mirrored < 40


def test_frames_do_not_see_each_other():
    video = torch.randint(0, 256, (19, 3, 20, 30), dtype=torch.uint8)
    crop = {"trans_type": "CenterCropResizeVideo", "param": {"size": [8, 8], "interpolation_mode": "bicubic"}}
    transform = pipeline("ToTensorVideo", crop, "ae_norm")
    whole = transform(video, random.Random(0))
    assert whole.shape == (19, 3, 8, 8)
    for number in (0, 8, 18):
        alone = transform(video[number : number + 1], random.Random(0))
        assert torch.equal(alone[0], whole[number])


def test_norm_fun_takes_mean_and_std_per_channel():
    video = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    norm = {"trans_type": "norm_fun", "param": {"mean": [0.5, 0.0, 1.0], "std": [0.5, 2.0, 1.0]}}
    out = pipeline("ToTensorVideo", norm)(video, random.Random(0))
    assert out[0, :, 0, 0].tolist() == [1.0, 0.5, 0.0]


def test_to_tensor_twice_and_division_by_zero_are_config_errors():
    video = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="ToTensorVideo takes uint8 frames, found torch.float32"):
        pipeline("ToTensorVideo", "ToTensorVideo")(video, random.Random(0))
    with pytest.raises(ConfigError, match="ToTensorVideo takes uint8 frames, found torch.float32"):
        pipeline("ToTensorVideo")(video.float(), random.Random(0))
    with pytest.raises(ConfigError, match="std: .* must be above 0"):
        pipeline({"trans_type": "norm_fun", "param": {"std": [1.0, 0.0, 1.0]}})

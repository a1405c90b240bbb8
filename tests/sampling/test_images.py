"""Samples that start from images and clips: sizes, places, pixels, and what the denoiser is told of them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from ranks import run_ranks
from sampling_parts import IMAGES, pipeline, sample_model

from mindspeed_mm.config.image_inputs import FrameInput, ImageInputs
from mindspeed_mm.config.launch import LaunchConfig
from mindspeed_mm.config.sample import PromptConfig, SampleConfig
from mindspeed_mm.errors import ConfigError, SamplingError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.sampling import images, record
from mindspeed_mm.sampling.pipeline import to_uint8
from mindspeed_mm.sampling.prompt_files import read_prompts
from mindspeed_mm.sampling.requests import Request, requests_of
from mindspeed_mm.sampling.writer import write_image, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """wide.png and tall.png of one colour, and clip.mp4 whose frame i has the grey level 8 i."""
    folder = tmp_path_factory.mktemp("images")
    write_image(np.full((1, 40, 90, 3), 200, np.uint8), folder / "wide.png")
    write_image(np.full((1, 90, 40, 3), 60, np.uint8), folder / "tall.png")
    mask = np.zeros((1, 64, 64, 3), np.uint8)
    mask[:, :, 32:] = 255
    write_image(mask, folder / "mask.png")
    levels = (8 * np.arange(30)).astype(np.uint8)
    write_video(np.broadcast_to(levels[:, None, None, None], (30, 64, 64, 3)), folder / "clip.mp4", 24)
    return folder


def settings(size=(17, 64, 64), **line):
    return images.settings_of(sample_model(size, IMAGES), PromptConfig(prompt="a red circle", **line))


def levels(video):
    """Grey level of each frame, 0 to 255."""
    return ((video[0].mean((0, 2, 3)) + 1) * 127.5).round().int().tolist()


def test_the_size_follows_the_image_at_about_as_many_pixels(folder):
    wide, tall = str(folder / "wide.png"), str(folder / "tall.png")
    assert settings(image=wide).pipeline_config.input_size == (17, 48, 96)
    assert settings(image=tall).pipeline_config.input_size == (17, 96, 48)
    assert settings(last_image=tall, image=wide).pipeline_config.input_size == (17, 48, 96)
    assert settings(image=wide, input_size=(17, 64, 64)).pipeline_config.input_size == (17, 64, 64)
    assert settings().pipeline_config.input_size == (17, 64, 64)


def test_images_come_to_their_places(folder):
    video, known = images.load(
        settings(
            image=str(folder / "wide.png"),
            frames=(FrameInput(at=5, image=str(folder / "tall.png")),),
            last_image=str(folder / "tall.png"),
        )
    )
    assert known[0].amax((1, 2)).nonzero().flatten().tolist() == [0, 5, 16] and known.mean() == 3 / 17
    assert [levels(video)[place] for place in (0, 5, 16)] == [200, 60, 60]


def test_a_clip_is_extended_from_its_last_frames_at_the_samples_rate(folder):
    model = settings(extend=str(folder / "clip.mp4"))
    video, known = images.load(model)
    assert known[0].amax((1, 2)).tolist() == [1] * 9 + [0] * 8
    assert levels(video)[:9] == pytest.approx([8 * place for place in range(21, 30)], abs=3)
    slow = dataclasses.replace(model, fps=12, images=dataclasses.replace(model.images, extend_frames=4))
    video, known = images.load(slow)
    assert known[0].amax((1, 2)).sum() == 4
    assert levels(video)[:4] == pytest.approx([8 * place for place in (23, 25, 27, 29)], abs=3)


def test_a_region_of_a_clip_is_unknown_where_the_mask_is_white(folder):
    video, known = images.load(settings(inpaint=str(folder / "clip.mp4"), mask=str(folder / "mask.png")))
    assert known[0, :, :, :32].eq(1).all() and known[0, :, :, 32:].eq(0).all()
    assert levels(video) == pytest.approx([8 * place for place in range(17)], abs=3)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"frames": (FrameInput(at=17, image="wide.png"),)}, "there is no frame 17 in a sample of 17"),
        ({"extend": "clip.mp4", "extend_frames": 17}, "extends nothing"),
        (
            {"inpaint": "clip.mp4", "mask": "mask.png", "input_size": (41, 64, 64)},
            "has 30 frames at 24 a second, too few",
        ),
    ],
)
def test_inputs_that_cannot_be_used_are_refused_before_any_work(folder, line, reason):
    def located(value):
        if isinstance(value, tuple) and isinstance(value[0], FrameInput):
            return tuple(FrameInput(at=item.at, image=str(folder / item.image)) for item in value)
        return str(folder / value) if isinstance(value, str) else value

    lines = [PromptConfig(prompt="a", **{name: located(value) for name, value in line.items()})]
    with pytest.raises(ConfigError, match=f"prompt 1: .*{reason}"):
        requests_of(sample_model((17, 64, 64), IMAGES), lines, 1, LaunchConfig(), "prompts.jsonl")


def test_a_model_without_inputs_for_images_says_so(folder):
    with pytest.raises(ConfigError, match="the predictor takes no images"):
        images.settings_of(sample_model(), PromptConfig(prompt="a", image=str(folder / "wide.png")))


def test_lines_of_a_file_name_images_and_the_jobs_serve_the_others(folder):
    wide, tall = str(folder / "wide.png"), str(folder / "tall.png")
    lines = [
        {"prompt": "a", "image": tall},
        {"prompt": "b", "frames": [{"at": 8, "image": tall}]},
        {"prompt": "c"},
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = dataclasses.replace(sample_model((17, 64, 64), IMAGES), images=ImageInputs(image=wide))
    found = requests_of(model, read_prompts(str(folder / "prompts.jsonl")), 1, LaunchConfig())
    assert [one.model.images.files for one in found] == [{"image": tall}, {"frames 8": tall}, {"image": wide}]


def test_a_record_knows_images_by_their_content(folder):
    config = SampleConfig(launch=LaunchConfig(), model=sample_model((17, 64, 64), IMAGES))

    def block(**line):
        return record.sample_block(Request(settings(**line), 1), config, {})

    same = folder / "same.png"
    same.write_bytes((folder / "wide.png").read_bytes())
    assert block(image=str(same)) == block(image=str(folder / "wide.png")) != block(last_image=str(same))
    assert "images" not in block() and "images" not in block()["settings"]


def shown_at(tensor: int, context: int, sequence_parallel: bool, guidance: bool, image) -> np.ndarray:
    parallel = ParallelContext.start(
        tensor_size=tensor, context_size=context, sequence_parallel=sequence_parallel, guidance_parallel=guidance
    )
    pipe = pipeline(parallel, predictor=IMAGES)
    return pipe.denoise([request(pipe, image)], progress=False).numpy()


def request(pipe, image) -> Request:
    line = PromptConfig(prompt="a red circle", input_size=(9, 64, 64), image=image)
    return Request(images.settings_of(pipe.config, line), 7)


def test_an_image_gives_the_same_latents_at_every_layout(folder):
    pipe, image = pipeline(predictor=IMAGES), str(folder / "wide.png")
    one = pipe.denoise([request(pipe, image)], progress=False).numpy()
    other = pipe.denoise([request(pipe, str(folder / "tall.png"))], progress=False).numpy()
    assert np.abs(one - other).max() > 1e-2
    for layout in ((2, 1, True, False), (1, 2, False, False), (1, 1, False, True)):
        for found in run_ranks(shown_at, 2, *layout, image):
            assert np.abs(found - one).max() < 1e-4


def test_latents_of_frames_that_are_known_wholly_come_back_exactly(folder):
    pipe = pipeline(predictor=IMAGES)
    line = PromptConfig(prompt="a", input_size=(17, 64, 64), extend=str(folder / "clip.mp4"))
    one = Request(images.settings_of(pipe.config, line), 7)
    known = pipe.encode([one]).image
    found = pipe.denoise([one], progress=False)
    assert known.mask[0].amin((0, 2, 3)).tolist() == [1, 1, 0]
    assert torch.allclose(found[:, :, :2], known.latents[:1, :, :2], atol=1e-5)
    assert (found[:, :, 2] - known.latents[:1, :, 2]).abs().max() > 0.1


def test_a_prompt_without_image_in_a_batch_is_text_to_video(folder):
    pipe = pipeline(predictor=IMAGES)
    both = [request(pipe, str(folder / "wide.png")), request(pipe, None)]
    together = pipe.denoise(both, progress=False)
    alone = torch.cat([pipe.denoise([one], progress=False) for one in both])
    assert (together - alone).abs().max() < 1e-5


def test_notebooks_give_arrays(folder):
    pipe = pipeline(predictor=IMAGES)
    picture = np.full((40, 90, 3), 200, np.uint8)
    found = pipe("a red circle", image=picture, progress=False)
    assert found.shape == (9, 48, 96, 3)
    assert np.array_equal(found, pipe("a red circle", image=folder / "wide.png", progress=False))
    last = pipe("a red circle", image=ImageInputs(last_image=picture), progress=False)
    assert not np.array_equal(found, last)
    with pytest.raises(ConfigError, match=r"need uint8 \[H,W,3\]"):
        pipe("a red circle", image=picture.astype(np.float32))


def test_a_file_that_breaks_later_ends_one_sample(folder):
    model = settings(image=str(folder / "wide.png"))
    broken = dataclasses.replace(model, images=ImageInputs(image=str(folder / "gone.png")))
    with pytest.raises(SamplingError, match="gone.png"):
        images.load(broken)


@pytest.mark.parametrize("kind", ["first", "inpaint"])
def test_known_pixels_are_put_back_where_a_prompt_asks_for_it_and_nowhere_else(folder, kind):
    pipe = pipeline(predictor=IMAGES)
    shown = {
        "first": {"image": str(folder / "wide.png")},
        "inpaint": {"inpaint": str(folder / "clip.mp4"), "mask": str(folder / "mask.png")},
    }[kind]
    lines = [PromptConfig(prompt="a", input_size=(9, 64, 64), keep_known_pixels=keep, **shown) for keep in (True, None)]
    kept, plain = (Request(images.settings_of(pipe.config, line), 7) for line in lines)
    latents = torch.randn(pipe.noise([kept]).shape, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1, 1)
    found, decoded = pipe.finished([kept, plain], latents)
    video, known = images.load(kept.model)
    inside = known[0].numpy() > 0
    assert 0 < inside.mean() < 1
    assert np.array_equal(found[inside], to_uint8(video)[0][inside])
    assert np.array_equal(found[~inside], decoded[~inside])
    assert np.array_equal(decoded, pipe.decode(latents)[1])  # without the key they are as decoded


def test_the_flag_and_the_json_are_for_every_prompt_that_does_not_say_otherwise():
    model = dataclasses.replace(sample_model(), keep_known_pixels=True)
    found = [model.for_prompt(PromptConfig(prompt="a", keep_known_pixels=keep)) for keep in (None, False)]
    assert [one.keep_known_pixels for one in found] == [True, False]

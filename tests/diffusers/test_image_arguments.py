"""Images as arguments of the diffusers pipeline: the frames of `T2VPipeline`, from a folder that was exported."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from eight_bits import PROMPT, SEED, as_uint8
from PIL import Image

import mindspeed_mm as mm
from mindspeed_mm.cli import weights
from mindspeed_mm.config.image_inputs import ImageInputs
from mindspeed_mm.diffusers import OpenSoraPlanPipeline
from mindspeed_mm.errors import ConfigError

MASK = 8  # frames of a latent


@pytest.fixture(scope="module")
def image_model(small_model, tmp_path_factory):
    """sample.json of a model that takes images."""
    folder = tmp_path_factory.mktemp("image_model")
    block = json.loads((small_model / "sample.json").read_text())
    state = torch.load(small_model / "model.pt", weights_only=True)
    patch = state["patch_embed.proj.weight"]
    shape = (patch.shape[0], patch.shape[1] + MASK, *patch.shape[2:])
    state["image_embed.proj.weight"] = 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.save(state, folder / "model.pt")
    block["predictor"] |= {"image_mask_channels": MASK, "from_pretrained": str(folder / "model.pt")}
    (folder / "sample.json").write_text(json.dumps(block))
    return folder / "sample.json"


@pytest.fixture(scope="module")
def image_folder(image_model, tmp_path_factory):
    target = tmp_path_factory.mktemp("images") / "hub"
    weights.export(["--mm-model", str(image_model), "--format", "diffusers", "--output", str(target)])
    return target


@pytest.fixture(scope="module")
def image_pipeline(image_folder):
    found = OpenSoraPlanPipeline.from_pretrained(image_folder)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def theirs(image_model):
    return mm.T2VPipeline.from_config(image_model)


def picture(height: int, width: int, phase: int = 0) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 3 + phase, columns, rows + columns], -1).astype(np.uint8)


FIRST, LAST = picture(40, 40), picture(40, 72, 90)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"image": FIRST}, FIRST),
        ({"image": FIRST, "last_image": Image.fromarray(LAST)}, ImageInputs(image=FIRST, last_image=LAST)),
        ({"last_image": LAST}, ImageInputs(last_image=LAST)),
    ],
    ids=["first", "both", "last"],
)
def test_frames_equal_those_of_the_package(image_pipeline, theirs, given, wanted):
    found = as_uint8(image_pipeline(PROMPT, seed=SEED, output_type="np", **given).frames)[0]
    assert np.array_equal(found, theirs(PROMPT, seed=SEED, image=wanted, progress=False))
    if "image" not in given:
        assert found.shape[1:3] == (16, 48)  # the image's aspect ratio, in multiples that fit
    assert not np.array_equal(found, theirs(PROMPT, seed=SEED, size=found.shape[:3], progress=False))


def test_each_prompt_has_its_image_and_each_video_of_it(image_pipeline):
    def frames(**given):
        size = {"height": 32, "width": 32, "output_type": "latent", "num_inference_steps": 2}
        return image_pipeline(**size, **given).frames

    noise = torch.randn(4, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))[:, : frames(prompt="a").shape[1]]
    images = [FIRST, Image.fromarray(LAST)]
    together = frames(prompt=["a", "b"], image=images, num_videos_per_prompt=2, latents=noise)
    for place, (prompt, image) in enumerate(zip("aabb", np.repeat(np.arange(2), 2), strict=True)):
        alone = frames(prompt=prompt, image=images[image], latents=noise[place : place + 1])
        torch.testing.assert_close(together[place : place + 1], alone, rtol=1e-4, atol=1e-4)


def test_faster_cache_knows_the_images_of_both_halves(image_pipeline):
    from test_usage import CACHES

    given = {"seed": SEED, "output_type": "np", "image": FIRST}
    whole = as_uint8(image_pipeline(PROMPT, **given).frames)
    image_pipeline.transformer.enable_cache(CACHES["faster"](image_pipeline))
    try:
        found = as_uint8(image_pipeline(PROMPT, **given).frames)
    finally:
        image_pipeline.transformer.disable_cache()
    assert (
        not np.array_equal(found, whole) and np.abs(found.astype(int) - whole).mean() < 40
    )  # of 255, on random weights


def test_what_cannot_be_used_is_named(image_pipeline, pipeline):
    with pytest.raises(ConfigError, match="image: the transformer takes no images"):
        pipeline(PROMPT, image=FIRST)
    with pytest.raises(ValueError, match="last_image: 2 images for 1 prompts"):
        image_pipeline(PROMPT, last_image=[FIRST, FIRST])
    for wrong in (FIRST.astype(np.float32), FIRST[..., 0], "a.png"):
        with pytest.raises(ValueError, match="image: .*; give PIL images or arrays"):
            image_pipeline(PROMPT, image=wrong)


def test_a_process_without_this_package_takes_an_image_too(image_folder, theirs, tmp_path):
    from test_diffusers_folder import STRANGER

    call = f"image={FIRST.tolist()}".replace("image=", "image=np.array(") + ", np.uint8), "
    code = STRANGER.replace('"a red circle", ', '"a red circle", ' + call).replace(
        "pipeline.save_pretrained(again)", ""
    )
    arguments = [sys.executable, "-c", code, image_folder, tmp_path / "again", tmp_path / "frames.npy"]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = as_uint8(np.load(tmp_path / "frames.npy"))[0]
    assert np.array_equal(found, theirs(PROMPT, seed=SEED, image=FIRST, progress=False))

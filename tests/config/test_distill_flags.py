"""Flags of distillation and of sampling its weights: what they become, and mistakes in one line."""

import pytest
from config_files import TRAIN_FLAGS, change, write_all

from mindspeed_mm.config import resolve
from mindspeed_mm.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    write_all(tmp_path)
    change(tmp_path / "model.json", "predictor.from_pretrained", str(tmp_path / "model.pt"))
    return tmp_path


def train(folder, *flags):
    files = ["--mm-model", str(folder / "model.json"), "--mm-data", str(folder / "data.json")]
    return resolve.run_config([*files, *TRAIN_FLAGS, *flags], world_size=1)


def test_the_teacher_is_what_the_student_begins_from_and_guided_as_the_json_says(folder):
    change(folder / "model.json", "diffusion.guidance_scale", 6.0)
    config = train(folder, "--distill", "steps", "--distill-rescale", "0.25")
    assert config.distill.teacher == str(folder / "model.pt")
    guided = config.distill.diffusion_of(config.model.diffusion)
    assert (guided.guidance_scale, guided.guidance_rescale) == (6.0, 0.25)
    other = train(
        folder, "--distill", "guidance", "--distill-teacher", str(folder / "vae.pt"), "--distill-guidance", "2"
    )
    assert other.distill.teacher == str(folder / "vae.pt")
    assert other.distill.diffusion_of(other.model.diffusion).guidance_scale == 2.0
    assert train(folder).distill.method is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distill-guidance", "4"], "--distill-guidance: only with --distill"),
        (["--distill", "guidance", "--distill-steps", "4"], "only with --distill steps"),
        (["--distill", "guidance", "--distill-teacher", "/nowhere"], "--distill-teacher /nowhere: no such file"),
        (["--distill", "guidance", "--distill-guidance", "0.5"], "--distill-guidance 0.5: must be"),
        (["--distill", "gidance"], "did you mean 'guidance'"),
    ],
)
def test_mistakes_are_named(folder, flags, message):
    with pytest.raises(ConfigError, match=message):
        train(folder, *flags)


def test_a_student_begins_from_weights(tmp_path):
    write_all(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.json.*predictor\.from_pretrained is missing; with --distill"):
        train(tmp_path, "--distill", "guidance")


def test_flags_of_steps_and_guidance_replace_the_json_and_stay(tmp_path):
    write_all(tmp_path)
    config = resolve.sample_config(["--mm-model", str(tmp_path / "sample.json"), "--steps", "7"], world_size=1)
    assert (config.model.diffusion.num_inference_steps, config.fixed) == (7, ("num_inference_steps",))
    config = resolve.sample_config(["--mm-model", str(tmp_path / "sample.json"), "--guidance", "1"], world_size=1)
    assert (config.model.diffusion.guidance_scale, config.fixed) == (1.0, ("guidance_scale",))

"""A folder for diffusers gives the frames of `T2VPipeline`, also in a process that has neither this package nor
megatron-core."""

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mindspeed_mm.cli import weights
from mindspeed_mm.diffusers import OpenSoraPlanPipeline

PROMPT, SEED = "a red circle", 3
# Loads the folder, samples, saves it again; this package and megatron-core cannot be imported.
STRANGER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mindspeed_mm", "megatron"):
            raise ModuleNotFoundError(f"{name} is hidden")

sys.meta_path.insert(0, Blocker())
import numpy as np
from diffusers import DiffusionPipeline

folder, again, frames = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
np.save(frames, pipeline("a red circle", seed=3, output_type="np").frames)
pipeline.save_pretrained(again)
assert not [name for name in sys.modules if name.partition(".")[0] in ("mindspeed_mm", "megatron")]
"""


@pytest.fixture(scope="module")
def stranger(folder, tmp_path_factory) -> Path:
    """What such a process leaves: frames.npy, and the folder `again`."""
    at = tmp_path_factory.mktemp("stranger")
    arguments = [sys.executable, "-c", STRANGER, folder, at / "again", at / "frames.npy"]
    environment = {**os.environ, "HF_MODULES_CACHE": str(at / "modules")}
    done = subprocess.run(arguments, cwd=at, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return at


def test_frames_equal_those_of_the_package(frames, ours):
    assert np.array_equal(frames()[0], ours)
    # in two passes the text has other padding, hence other sums
    apart = np.abs(frames(sequential_guidance=True)[0].astype(int) - ours)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


def test_a_process_without_this_package_makes_the_same_frames(stranger, ours):
    found = np.load(stranger / "frames.npy")[0]
    assert np.array_equal((found * 255).round().astype(np.uint8), ours)


def test_folders_come_back_bit_by_bit_from_either_side(folder, pipeline, stranger, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    for saved in (tmp_path / "saved", stranger / "again"):
        for component in ("transformer", "vae"):
            theirs, mine = state(saved / component), state(folder / component)
            assert theirs.keys() == mine.keys()
            assert all(torch.equal(theirs[name], value) for name, value in mine.items())
        code = sorted(path.relative_to(folder) for path in folder.rglob("*.py"))
        assert len(code) == 3 and filecmp.cmpfiles(folder, saved, code, shallow=False)[0] == code
        index, before = (json.loads((where / "model_index.json").read_text()) for where in (saved, folder))
        # not the tokenizers, whose class has another name in transformers 5
        assert all(
            index[name] == before[name] for name in ("_class_name", "transformer", "vae", "scheduler", "settings")
        )
        assert index["_class_name"] == ["pipeline_opensoraplan", "OpenSoraPlanPipeline"]
    again = OpenSoraPlanPipeline.from_pretrained(stranger / "again").transformer.state_dict()
    assert all(torch.equal(again[name], value) for name, value in pipeline.transformer.state_dict().items())


def test_names_are_the_published_ones(small_model, folder):
    """Of transformer and autoencoder, in the files of the folder."""
    for component, source in (("transformer", "model.pt"), ("vae", "vae.pt")):
        wanted, found = torch.load(small_model / source, weights_only=True), state(folder / component)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_folder_is_not_written_over(small_model, folder, capsys):
    with pytest.raises(SystemExit):
        weights.export(["--mm-model", str(small_model / "sample.json"), "--format", "diffusers", "--save", str(folder)])
    assert "exists already" in capsys.readouterr().err


def state(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found

"""Trackers: numbers, pictures and videos reach each service, a resumed run continues its record, and one that is not
installed is said before anything is loaded. The services' packages are stood in for by recorders.
"""

import importlib.util
import sys
import types

import numpy as np
import pytest
from PIL import Image
from ranks import log_lines

from mindspeed_mm.config import arguments
from mindspeed_mm.config.run import CheckpointConfig, ReportConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.sampling.writer import write_video
from mindspeed_mm.training.reports import Reports


class Run:
    def __init__(self, options):
        self.options, self.logged, self.finished = options, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


class Config:
    """The part of a run's config that reports read."""

    def __init__(self, save, **report):
        self.report, self.checkpoint = ReportConfig(**report), CheckpointConfig(save=str(save))
        self.flags = (("lr", "1e-3"), ("load", None))


@pytest.fixture
def services(monkeypatch):
    """Runs that were begun, by package."""
    begun = {}
    for name in ("wandb", "swanlab"):
        runs = begun[name] = []
        module = types.ModuleType(name)
        module.init = lambda runs=runs, **options: runs.append(Run(options)) or runs[-1]
        module.Image = lambda path: ("picture", path)
        module.Video = lambda data, **options: ("video", data, options)
        monkeypatch.setitem(sys.modules, name, module)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in begun else found(name))
    return begun


def sample(folder):
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    for number in range(5):
        frames[number, :, : 3 * number] = 255
    write_video(frames, folder / "video_000000.mp4", fps=8)
    Image.fromarray(frames[0]).save(folder / "contact_sheet.png")


def test_numbers_and_videos_reach_the_services_and_a_resumed_run_continues(services, tmp_path):
    folder = tmp_path / "iter_0000002"
    folder.mkdir()
    sample(folder)
    for start in range(2):
        names = {"wandb_project": "p", "wandb_name": "n", "swanlab_project": "q", "swanlab_dir": str(tmp_path)}
        with Reports(Config(tmp_path, **names), is_first=True).open() as reports:
            reports.values(start, {"loss": 0.5})
            reports.samples(start, folder)
    for runs in services.values():
        first, second = runs
        assert first.options["id"] == second.options["id"] and second.options["resume"] == "allow"
        assert first.options["config"] == {"lr": "1e-3"} and first.finished and second.finished
        assert first.logged[0] == (0, {"loss": 0.5}) and second.logged[0] == (1, {"loss": 0.5})
        step, shown = first.logged[1]
        assert step == 0 and sorted(shown) == ["samples/contact_sheet", "samples/video_000000"]
    assert services["wandb"][0].options["id"] != services["swanlab"][0].options["id"]
    assert services["wandb"][0].options["name"] == "n" and services["swanlab"][0].options["log_dir"] == str(tmp_path)
    kind, data, options = services["wandb"][0].logged[1][1]["samples/video_000000"]
    assert (kind, options) == ("video", {"format": "mp4"}) and data.endswith("video_000000.mp4")
    gif = Image.open(services["swanlab"][0].logged[1][1]["samples/video_000000"][1])
    assert (gif.format, gif.n_frames, gif.size) == ("GIF", 5, (16, 16))


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"wandb": 3}'])
def test_a_damaged_list_of_records_begins_a_new_one(services, tmp_path, damage):
    (tmp_path / "trackers.json").write_text(damage)
    with Reports(Config(tmp_path, wandb_project="p"), is_first=True).open():
        pass
    assert len(services["wandb"][0].options["id"]) == 32


FLAGS = ["--mm-model", "m.json", "--mm-data", "d.json", "--train-iters", "1", "--lr", "1"]


@pytest.mark.parametrize(
    ("flag", "package"),
    [("--tensorboard-dir", "tensorboard"), ("--wandb-project", "wandb"), ("--swanlab-project", "swanlab")],
)
def test_a_tracker_that_is_not_installed_is_said_with_the_flags(monkeypatch, flag, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"{flag} p: the package {package} is not installed; pip install {package}"):
        arguments.TRAIN.parse([*FLAGS, flag, "p"])


def test_or_left_out_on_request(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    given = arguments.TRAIN.parse([*FLAGS, "--swanlab-project", "p", "--missing-trackers", "skip"])
    config = Config(tmp_path, swanlab_project="p", missing_trackers=given.values.report.missing_trackers)
    with log_lines() as lines, Reports(config, is_first=True).open() as reports:
        reports.values(1, {"loss": 0.5})
    assert lines == ["SwanLab: the package swanlab is not installed; going on without it"]

"""A small world on disk for whole runs: encoders, an autoencoder, and configs for the real clips."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples" / "quickstart"), str(ROOT / "tests" / "config")]

import config_files  # noqa: E402
from tiny_encoders import write_encoders  # noqa: E402

import mindspeed_mm as mm  # noqa: E402


@pytest.fixture(scope="session")
def world(tmp_path_factory, clips) -> Path:
    """A folder with t5, clip, vae.pt, data.txt (the real clips), model.json, data.json and sample.json."""
    folder = tmp_path_factory.mktemp("world")
    captions = [row["cap"] for row in json.loads((clips / "annotations.json").read_text())]
    texts = [text for caption in captions for text in ([caption] if isinstance(caption, str) else caption)]
    write_encoders(folder, texts)
    torch.manual_seed(0)
    torch.save(mm.build_autoencoder(config_files.AUTOENCODER).state_dict(), folder / "vae.pt")
    (folder / "data.txt").write_text(f"{clips},{clips / 'annotations.json'}\n")
    data = config_files.data_block(folder)
    # 30 frames at 30 fps are 9 at just over 8 fps; with these all six clips are kept
    data["dataset_param"]["preprocess_parameters"].update(train_fps=8.05, too_long_factor=12.0)
    (folder / "data.json").write_text(json.dumps(data, indent=1))
    (folder / "model.json").write_text(json.dumps(config_files.model_block(folder), indent=1))
    (folder / "sample.json").write_text(json.dumps(config_files.sample_block(folder), indent=1))
    return folder

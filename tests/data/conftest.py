"""Fixtures of the data tests."""

import subprocess
import sys
from pathlib import Path

import pytest
from data_helpers import row, write_clip, write_list

_MAKER = Path(__file__).resolve().parents[3] / "shared" / "tiny_encoders" / "make_tiny_encoders.py"


@pytest.fixture(scope="session", params=["tokenizers", "spm"])
def encoder_folder(request, tmp_path_factory) -> Path:
    """Folder with t5-v1_1-tiny and CLIP-tiny; T5 once with tokenizer.json, once with spiece.model only, as published."""
    if not _MAKER.exists():
        pytest.skip(f"no {_MAKER}")
    folder = tmp_path_factory.mktemp(f"encoders_{request.param}")
    subprocess.run([sys.executable, str(_MAKER), str(folder), request.param], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """Twelve clips of 12 frames 64x128, numbered 0 to 11, 20 to 31, 40 to 51 ..., listed in data.txt."""
    folder = tmp_path_factory.mktemp("clips")
    names = [f"{number:02}.mp4" for number in range(12)]
    for number, name in enumerate(names):
        write_clip(folder / name, 12, first=20 * number)
    write_list(folder, [row(name, num_frames=12) for name in names])
    return folder

"""The launch scripts of both dialects, flags and all, from the first start to the resume; the programs run in ranks of the pool."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import checkpoint_files
import config_files
import mm_files
import pytest
import torch
from data_runs import train
from programs import ROOT
from ranks import run_ranks

from mindspeed_mm import families
from mindspeed_mm.files import layout, torch_state
from mindspeed_mm.sampling.writer import write_video

SCRIPT = ROOT / "examples" / "opensoraplan1.5" / "pretrain_opensoraplan1_5.sh"


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory) -> Path:
    """Eight clips of 32x64, both dialects' JSONs, encoders and an autoencoder, and weights in a `release` of MM's."""
    folder = tmp_path_factory.mktemp("flows")
    for name in ("t5", "clip", "vae.pt"):
        (folder / name).symlink_to(world / name)
    rows = []
    for number in range(8):
        frames = torch.full((16, 32, 64, 3), 20 * number, dtype=torch.uint8).numpy()
        write_video(frames, folder / f"{number}.mp4", 12)
        rows.append({"path": f"{number}.mp4", "cap": "a clip", "num_frames": 16, "fps": 12, "aesthetic": 5.0,
                     "resolution": {"height": 32, "width": 64}})  # fmt: skip
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "data.txt").write_text(f"{folder},{folder / 'rows.json'}\n")
    mm_files.write_configs(folder)
    osp = folder / "osp"
    osp.mkdir()
    (osp / "model.json").write_text(json.dumps(config_files.model_block(folder)))
    (osp / "data.json").write_text(json.dumps(config_files.data_block(folder, height=32, width=64)))
    whole = checkpoint_files.whole_weights(config=families.read_file(osp / "model.json"))
    shards = checkpoint_files.shards_of(
        {checkpoint_files.mm_name(name): 0.02 * value for name, value in whole.items()}, 1
    )
    checkpoint_files.write_directory(folder / "weights", shards, iteration=None)
    return folder


def given_by_our_script(folder: Path, **settings) -> list[str]:
    """The flags of a training program as the launch script gives them."""
    python = folder / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    own = {"PATH": os.environ["PATH"], "PYTHON": str(python), "LOG_DIR": str(folder / "logs"), "DEVICE": "cpu"}
    own |= {"MM_MODEL": str(folder / "osp" / "model.json"), "MM_DATA": str(folder / "osp" / "data.json"), "TP": "1"}
    result = subprocess.run(
        ["bash", str(SCRIPT)], env={**own, **settings}, capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout.split("pretrain_opensoraplan.py\n")[1].splitlines()


def given_by_mm(folder: Path, load: Path, save: Path, train_iters: int) -> list[str]:
    files = shlex.split(f"--mm-model {folder / 'pretrain_model.json'} --mm-data {folder / 'data.json'}")
    return [*files, *mm_files.TRAIN_FLAGS, "--load", str(load), "--save", str(save), "--train-iters", str(train_iters),
            "--device", "cpu", "--num-workers", "0"]  # fmt: skip


def test_our_script_starts_resumes_and_resumes_on_more_ranks(folder):
    save = folder / "run"
    settings = {"SAVE": str(save), "NPUS_PER_NODE": "1", "SAVE_INTERVAL": "2"}
    (first,) = run_ranks(train, 1, given_by_our_script(folder, **settings, TRAIN_ITERS="2"))
    assert sorted(first["losses"]) == [1, 2]
    (second,) = run_ranks(train, 1, given_by_our_script(folder, **settings, TRAIN_ITERS="4"))
    assert sorted(second["losses"]) == [1, 2, 3, 4] and second["state"]["consumed"] == 4
    # the script gives two ranks a global batch of 2; each clip of the epoch is still seen once
    flags = given_by_our_script(folder, **{**settings, "NPUS_PER_NODE": "2"}, TRAIN_ITERS="6")
    assert flags[flags.index("--global-batch-size") + 1] == "2"
    for third in run_ranks(train, 2, flags, 2):
        assert sorted(third["losses"]) == [1, 2, 3, 4, 5, 6]
        state = third["state"]
        assert (state["epoch"], state["consumed"], state["earlier"]) == (0, 4, ((1, 4),))


def test_mms_script_starts_from_its_weights_and_resumes_from_its_own(folder):
    """--load names the converter's `release`, with --no-load-optim --no-load-rng; what it saves has neither."""
    save = folder / "mm_run"
    (first,) = run_ranks(train, 1, given_by_mm(folder, folder / "weights", save, 2))
    assert sorted(first["losses"]) == [1, 2]
    state = torch_state.load(save / "iter_0000002" / "mp_rank_00" / layout.MODEL_FILE)
    assert state["optimizer"] is None and state["rng_state"] is None
    (second,) = run_ranks(train, 1, given_by_mm(folder, save, save, 4))
    assert sorted(second["losses"]) == [1, 2, 3, 4]
    assert second["losses"][2] == first["losses"][2]
    assert (save / layout.TRACKER).read_text() == "4"
    assert second["state"]["consumed"] == 4

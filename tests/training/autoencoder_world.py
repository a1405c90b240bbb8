"""A world on disk for runs of the autoencoder, and its Trainer on ranks of the pool."""

import json
import sys
from pathlib import Path

import config_files
import numpy as np
import torch

from mindspeed_mm.config.autoencoder import training_config
from mindspeed_mm.sampling.writer import write_video
from mindspeed_mm.training.trainer import Trainer


def write_world(folder: Path) -> Path:
    """Eight clips of coloured squares, tokenizers, model.json (its `ae` block alone) and data.json."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "quickstart"))
    from tiny_encoders import write_encoders

    write_encoders(folder, ["a square"])
    rows = []
    for number in range(8):
        frames = np.full((9, 32, 32, 3), 40, dtype=np.uint8)
        frames[:, 8:24, 2 * number : 2 * number + 12, number % 3] = 220
        write_video(frames, folder / f"{number}.mp4", 8)
        size = {"height": 32, "width": 32}
        rows.append({"path": f"{number}.mp4", "cap": "a square", "num_frames": 9, "fps": 8, "resolution": size})
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "data.txt").write_text(f"{folder},{folder / 'rows.json'}\n")
    (folder / "data.json").write_text(json.dumps(config_files.data_block(folder)))
    (folder / "model.json").write_text(json.dumps({"ae": config_files.AUTOENCODER}))
    return folder


def flags(world: Path, *more) -> list[str]:
    return [*map(str, ("--mm-model", world / "model.json", "--mm-data", world / "data.json", "--device", "cpu", *more))]


def trainer_of(world: Path, *more) -> Trainer:
    """The trainer of a run on this rank of the pool; all ranks share the run."""
    from mindspeed_mm import launch
    from mindspeed_mm.training.autoencoder import build_autoencoder_trainer

    argv = flags(world, "--global-batch-size", 2, "--lr", 1e-3, "--ema-decay", 0.5, *more)
    config = training_config(argv, world_size=torch.distributed.get_world_size())
    platform, parallel = launch.start(config.launch)
    return build_autoencoder_trainer(config, platform, parallel)

"""Data and training together: encoders shared by ranks, stored features, lists full of broken files."""

import collections
import itertools
import json
import math
import os
import random
import shutil
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from config_files import PREDICTOR, change
from data_runs import extract, train
from ranks import log_lines, run_ranks

import mindspeed_mm as mm
from mindspeed_mm.config import resolve
from mindspeed_mm.data.feed.dataset import build_dataset
from mindspeed_mm.data.feed.sampler import GroupedSampler, Order, Position, Split
from mindspeed_mm.data.feed.substitutes import Substitutes
from mindspeed_mm.errors import DataError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.training.denoiser_data import DenoiserData

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))
from data_helpers import row, write_clip, write_list


@pytest.fixture
def files(world, tmp_path):
    """A folder with copies of the configs and of the autoencoder, which a test may change; flags for a run in it."""
    for name in ("model.json", "data.json", "vae.pt", "data.txt"):
        shutil.copy(world / name, tmp_path / name)
    change(tmp_path / "model.json", "ae.from_pretrained", str(tmp_path / "vae.pt"))
    change(tmp_path / "data.json", "dataset_param.basic_parameters.data_path", str(tmp_path / "data.txt"))
    return tmp_path


def flags_of(folder, save, iterations: int, *more):
    json_files = ["--mm-data", folder / "data.json", "--mm-model", folder / "model.json", "--save", folder / save]
    return [*json_files, "--lr", 1e-3, "--train-iters", iterations, "--num-workers", 1, *more]


def train_on(ranks: int, flags):
    return run_ranks(train, ranks, flags, ranks)[0]


# ---------------------------------------------------------------------------------------------------- enable_encoder_dp


def test_ranks_that_share_their_encoders_train_as_if_each_had_its_own(files):
    """Rounds of two micro-batches and optimizer steps of one: a stop after an odd one is within a round."""
    layout = ["--tensor-model-parallel-size", 2, "--global-batch-size", 1]
    wanted = train_on(2, flags_of(files, "own", 5, *layout))
    change(files / "model.json", "enable_encoder_dp", True)
    first = train_on(2, flags_of(files, "shared", 3, *layout))
    assert first["state"]["consumed"] == first["state"]["ledger"]["good"] == 3
    assert train_on(2, flags_of(files, "shared", 5, *layout, "--load", files / "shared")) == wanted


# ------------------------------------------------------------------------------------------------------- stored features


@pytest.fixture
def stored(files):
    """The same with a feature folder, two crops of each clip, and captions dropped half of the time."""
    change(files / "data.json", "dataset_param.basic_parameters.feature_folder", str(files / "features"))
    change(files / "data.json", "dataset_param.preprocess_parameters.fixed_crops", 2)
    change(files / "data.json", "dataset_param.preprocess_parameters.cfg", 0.5)
    return files


def use_stored(folder, value: bool = True):
    for name in ("load_video_features", "load_text_features"):
        change(folder / "model.json", name, value)


def test_training_from_stored_features_gives_the_same_loss_bit_for_bit(stored):
    wanted = train_on(1, flags_of(stored, "on_the_fly", 13))  # more than two epochs of six clips: both crops
    assert run_ranks(extract, 1, flags_of(stored, "no", 1))[0] == (12, 0, captions_of(stored) + 1)
    use_stored(stored)
    found = train_on(1, flags_of(stored, "stored", 13))
    assert found == wanted
    assert len(set(found["losses"].values())) == 13
    change(stored / "model.json", "load_text_features", False)
    assert train_on(1, flags_of(stored, "videos_only", 13)) == wanted


def test_a_student_learns_alike_from_stored_features(stored):
    """The text in place of captions is encoded at the start, or found in the store."""
    weights = mm.build_denoiser(PREDICTOR, seed=3).state_dict()
    torch.save({name: value for name, value in weights.items() if value is not None}, stored / "teacher.pt")
    change(stored / "model.json", "predictor.from_pretrained", str(stored / "teacher.pt"))
    distill = ["--distill", "steps", "--distill-steps", 2, "--distill-teacher-steps", 1, "--distill-guidance", 3]
    held_out = ["--eval-data", stored / "data.txt", "--eval-iters", 1]
    wanted = train_on(1, flags_of(stored, "on_the_fly", 1, *distill, *held_out))
    assert {"eval loss", "eval loss sigma 0.0-0.2"} <= set((stored / "on_the_fly/metrics.jsonl").read_text().split('"'))
    run_ranks(extract, 1, flags_of(stored, "no", 1))
    use_stored(stored)
    assert train_on(1, flags_of(stored, "stored", 1, *distill)) == wanted
    refused = train_on(1, flags_of(stored, "other", 1, *distill, "--distill-negative-prompt", "blurry"))
    assert "--distill-negative-prompt: 'blurry': has no stored text features" in refused


def captions_of(folder) -> int:
    clips = Path((folder / "data.txt").read_text().strip().split(",")[1])
    captions = [row["cap"] for row in json.loads(clips.read_text())]
    return len({text for caption in captions for text in ([caption] if isinstance(caption, str) else caption)})


def test_an_extraction_goes_on_where_it_ended_at_any_number_of_ranks(stored):
    flags = flags_of(stored, "no", 1)
    assert run_ranks(extract, 2, flags)[1][:2] == (12, 0)
    assert run_ranks(extract, 1, flags)[0] == (0, 0, 0)
    for file in (*stored.glob("features/video-*-00001-*"), *stored.glob("features/text-*-00000-*.json")):
        file.unlink()  # the first rank's index of texts, the second one's clips
    again = run_ranks(extract, 1, flags)[0]
    assert again[:2] == (6, 0) and again[2] > 0
    use_stored(stored)
    assert len(train_on(1, flags_of(stored, "run", 2))["losses"]) == 2


def test_a_stale_store_is_refused_with_what_changed(stored):
    assert run_ranks(extract, 1, flags_of(stored, "no", 1))[0][0] == 12
    use_stored(stored)

    def refused() -> str:
        message = train_on(1, flags_of(stored, "refused", 2))
        assert isinstance(message, str), message
        return message

    weights = torch.load(stored / "vae.pt", weights_only=True)
    torch.save({name: value * 1.5 for name, value in weights.items()}, stored / "vae.pt")
    assert "stored video features are stale, autoencoder.weights was" in refused()
    torch.save(weights, stored / "vae.pt")
    change(stored / "data.json", "dataset_param.preprocess_parameters.train_fps", 8.1)
    assert "sampling.train_fps was 8.05 and is 8.1" in refused()
    change(stored / "data.json", "dataset_param.preprocess_parameters.train_fps", 8.05)
    change(stored / "data.json", "dataset_param.model_max_length", 12)
    assert "stored text features are stale, model_max_length was 16 and is 12" in refused()
    change(stored / "data.json", "dataset_param.model_max_length", 16)
    change(stored / "data.json", "dataset_param.preprocess_parameters.fixed_crops", 3)
    assert "6 of 6 clips have no stored video features of 3 crops (fixed_crops)" in refused()


def use_list(folder, rows):
    write_list(folder, rows, "list")
    change(folder / "data.json", "dataset_param.basic_parameters.data_path", str(folder / "list.txt"))


def test_changed_files_and_new_captions_are_refused_and_then_encoded_and_bad_files_stay_bad(stored):
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        write_clip(stored / name, 12)
    (stored / "bad.mp4").write_bytes(b"no video")
    names = ("a.mp4", "b.mp4", "c.mp4", "d.mp4", "bad.mp4")
    rows = [row(name, num_frames=12, fps=8, cap=f"clip number {name[:-4]}") for name in names]
    use_list(stored, rows)
    extracting = flags_of(stored, "no", 1)
    assert run_ranks(extract, 1, extracting)[0] == (8, 2, 6)
    use_stored(stored)
    found = train_on(1, flags_of(stored, "first", 5))
    assert found["state"]["ledger"]["good"] == 5
    (path,) = found["state"]["ledger"]["bad_samples"]
    assert path == f"{stored}/bad.mp4"
    stamp = (stored / "a.mp4").stat()
    os.utime(stored / "a.mp4", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))
    message = train_on(1, flags_of(stored, "second", 5))
    assert "video features are stale, 1 files have changed since, for example" in message and "a.mp4" in message
    use_list(stored, [*rows[1:], {**rows[0], "cap": "a caption nobody has seen"}])
    assert run_ranks(extract, 1, extracting)[0] == (2, 0, 1)
    assert len(train_on(1, flags_of(stored, "third", 5))["losses"]) == 5


def test_a_run_without_the_clips_and_without_a_crop_number(stored):
    """Stored features need no clips; but they need `fixed_crops`, and a folder."""
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        write_clip(stored / name, 12)
    use_list(stored, [row(f"{name}.mp4", num_frames=12, fps=8) for name in "abcd"])
    run_ranks(extract, 1, flags_of(stored, "no", 1))
    for name in "abcd":
        (stored / f"{name}.mp4").unlink()
    use_stored(stored)
    assert len(train_on(1, flags_of(stored, "run", 4))["losses"]) == 4
    change(stored / "data.json", "dataset_param.preprocess_parameters.fixed_crops", 0)
    with pytest.raises(
        RuntimeError, match="fixed_crops: 0, new temporal crops in every epoch, but load_video_features"
    ):
        train_on(1, flags_of(stored, "refused", 4))


def test_a_held_out_list_is_stored_too(stored):
    for name in "abcd":
        write_clip(stored / f"{name}.mp4", 12)
    write_list(stored, [row(f"{name}.mp4", num_frames=12, fps=8) for name in "abcd"], "held_out")
    evaluation = ["--eval-data", stored / "held_out.txt", "--eval-interval", 1, "--eval-iters", 2]

    def evaluated(name: str) -> list[dict]:
        train_on(1, flags_of(stored, name, 1, *evaluation))
        lines = (stored / name / "metrics.jsonl").read_text().splitlines()
        return [values for values in map(json.loads, lines) if values["kind"] == "values"]

    wanted = evaluated("on_the_fly")
    assert run_ranks(extract, 1, flags_of(stored, "no", 1, *evaluation))[0][:2] == (20, 0)
    use_stored(stored)
    assert evaluated("stored") == wanted and wanted[0]["eval loss"] > 0


# ---------------------------------------------------------------------------------------------------------- broken files


def break_files(folder: Path, clips: Path) -> list[dict]:
    """Fourteen good clips and six that no run can use, as rows in a mixed order."""
    good = [f"good{number:02}.mp4" for number in range(14)]
    for number, name in enumerate(good):
        write_clip(folder / name, 12, 32, 128, first=10 * number)
    rng = random.Random(5)
    whole = (folder / good[0]).read_bytes()
    (folder / "zero.mp4").write_bytes(b"")
    for number in range(2):  # the index of these files is at their end
        (folder / f"truncated{number}.mp4").write_bytes(whole[: rng.randrange(1, len(whole) - 200)])
    write_audio(folder / "audio.mp4")
    shutil.copy(folder / good[1], folder / "short.mp4")
    shutil.copy(clips / "broken" / "not_a_video.mp4", folder / "not_a_video.mp4")
    bad = ["zero.mp4", "truncated0.mp4", "truncated1.mp4", "audio.mp4", "short.mp4", "not_a_video.mp4"]
    rows = [row(name, height=32, num_frames=12, fps=8) for name in (*good, *bad)]
    for entry in rows:
        if entry["path"] == "short.mp4":
            entry.update(num_frames=30, cut=[10, 40])  # the file ends at frame 12
    rng.shuffle(rows)
    return rows


def write_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def expected_counts(flags, steps: int) -> dict[str, int]:
    """How often each bad file must have been met: from the order of samples and of their substitutes alone."""
    config = resolve.run_config([str(flag) for flag in flags], world_size=1)
    dataset = build_dataset(config.data.dataset_param, global_batch_size=1, seed=config.seed)
    sampler = GroupedSampler(dataset.keys, Split(1), Order(config.seed))
    substitutes = Substitutes(dataset, config.seed)
    counts = collections.Counter()
    for step in itertools.islice(sampler.steps(Position()), steps):
        for candidate in substitutes.candidates(step.indices[0], step.epoch):
            path = dataset.paths[candidate]
            if "/good" in path:
                break
            counts[path] += 1
    return dict(counts)


def test_a_hundred_steps_over_a_list_with_thirty_percent_bad_files(files, clips):
    use_list(files, break_files(files, clips))
    flags = flags_of(files, "run", 100, "--save-interval", 1000)
    found = train_on(1, flags)
    assert len(found["losses"]) == 100 and all(math.isfinite(loss) for loss in found["losses"].values())
    ledger = json.loads((files / "run" / "data" / "bad_samples.json").read_text())
    wanted = expected_counts(flags, 100)
    assert len(wanted) == 6 and sum(wanted.values()) > 25
    assert {entry["path"]: entry["count"] for entry in ledger["bad_samples"]} == wanted
    assert (ledger["tried"], ledger["bad"]) == (100 + sum(wanted.values()), sum(wanted.values()))
    reasons = {Path(entry["path"]).name: entry["reason"] for entry in ledger["bad_samples"]}
    assert "has 12 frames; frame" in reasons["short.mp4"] and "no video" in reasons["audio.mp4"]


def test_too_many_bad_files_end_the_run_with_the_ledgers_path(files, clips):
    use_list(files, break_files(files, clips))
    message = train_on(1, flags_of(files, "run", 200, "--max-bad-fraction", 0.1))
    assert "more than --max-bad-fraction 0.1; they are listed in" in message
    ledger = json.loads((files / "run" / "data" / "bad_samples.json").read_text())
    assert ledger["bad_fraction"] > 0.1 and str(files / "run" / "data" / "bad_samples.json") in message


def test_every_dropped_row_is_listed_with_its_rule(files, clips):
    rows = break_files(files, clips)
    rows += [{**rows[0], "cap": None}, {**rows[1], "resolution": {"height": 900, "width": 3}}]
    use_list(files, rows)
    train_on(1, flags_of(files, "run", 1))
    report = json.loads((files / "run" / "data" / "dropped.json").read_text())
    assert (report["rows"], report["used"]) == (22, 20)
    assert report["dropped"] == {
        "no_cap": {"count": 1, "rows": [f"{files}/{rows[0]['path']}"]},
        "vid_aspect_mismatch": {"count": 1, "rows": [f"{files}/{rows[1]['path']}"]},
    }


def test_what_rows_leave_out_is_taken_from_the_files_if_asked(files):
    for name in "abcd":
        write_clip(files / f"{name}.mp4", 12, fps=8)
    whole = row("a.mp4", num_frames=12, fps=8)  # a source of which no row says size and length is always tried
    use_list(files, [whole, *({"path": f"{name}.mp4", "cap": "a clip"} for name in "bcd")])
    train_on(1, flags_of(files, "without", 1))
    dropped = json.loads((files / "without" / "data" / "dropped.json").read_text())["dropped"]
    assert dropped["no_resolution"]["count"] == 3
    found = run_ranks(train, 2, flags_of(files, "run", 1, "--probe", "--tensor-model-parallel-size", 2), 2)
    assert found[0] == found[1] and len(found[0]["losses"]) == 1
    assert len(json.loads((files / "list.txt.probe.json").read_text())["files"]) == 3


def on_nodes_of_their_own(folder, flags: list) -> str:
    """The error of a run in which each rank sees the folder of its node under one path: rank r sees `folder`/node<r>."""
    rank = torch.distributed.get_rank()
    seen = [str(flag).replace("/node/", f"/node{rank}/") for flag in flags]
    config = resolve.run_config(seen, world_size=2)
    with log_lines():
        try:
            DenoiserData(config, ParallelContext.start("gloo")).train()
        except DataError as error:
            return str(error)
    return ""


def test_nodes_with_other_lists_do_not_start(files):
    for rank in (0, 1):
        node = files / f"node{rank}"
        node.mkdir()
        rows = [row(f"{number}.mp4", num_frames=12, fps=8) for number in range(8 + rank)]
        write_list(node, rows, "list")
        shutil.copy(files / "data.json", node / "data.json")
        change(node / "data.json", "dataset_param.basic_parameters.data_path", str(node / "list.txt"))
    flags = ["--mm-data", files / "node" / "data.json", "--mm-model", files / "model.json"]
    flags = [*flags, "--lr", 1e-3, "--train-iters", 1, "--num-workers", 0]
    for found in run_ranks(on_nodes_of_their_own, 2, files, flags):
        assert "rank 1 on " in found and "sees another list of clips under this path than the first rank" in found

"""A sampling job on a small model: what it leaves on disk, resuming, failures, layouts."""

import hashlib
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from programs import run as run_program
from programs import run_until
from ranks import run_ranks
from sampling_world import OVERFLOWS, overflowing

from mindspeed_mm.config import resolve
from mindspeed_mm.errors import ConfigError, SamplingError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.sampling import record
from mindspeed_mm.sampling.run import run

PROMPTS = [
    {"prompt": "a red circle"},
    {"prompt": "a blue square", "seed": 5, "negative": "blurry"},
    {"prompt": "a green triangle", "guidance": 1, "steps": 3},
    {"prompt": "a red circle", "seed": 5, "size": [1, 32, 48]},
]
FILES = ["video_000000.mp4", "video_000001.mp4", "video_000002.mp4", "image_000003.png"]


def flags(small_model: Path, folder: Path, prompts=PROMPTS, *more) -> list[str]:
    """Arguments of inference.py for these prompts; the prompts file lies beside the samples' folder."""
    file = folder.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(line) + "\n" for line in prompts))
    return [*map(str, ["--mm-model", small_model / "sample.json", "--prompt", file, "--save-path", folder, *more])]


def sample(argv: list[str]) -> list[str]:
    """Run a job in this process; the names of the files that it wrote."""
    config = resolve.sample_config(["--device", "cpu", *argv], world_size=1)
    return [path.name for path in run(config, CpuPlatform(), ParallelContext.current())]


def contents(folder: Path, suffixes=(".mp4", ".png", ".html")) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in suffixes}


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory) -> Path:
    """The folder of a job of PROMPTS that nothing disturbed."""
    folder = tmp_path_factory.mktemp("job") / "samples"
    assert sample(flags(small_model, folder)) == FILES
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of that folder, to break."""
    shutil.copytree(finished, tmp_path / "samples")
    return tmp_path / "samples"


def test_a_sample_is_a_file_and_its_record(finished, small_model):
    assert sorted(path.name for path in finished.iterdir()) == sorted(
        [*FILES, *(Path(name).with_suffix(".json").name for name in FILES)]
        + ["index.html", "contact_sheet_000.png", "video_grid.mp4"]
    )
    with av.open(str(finished / "video_000001.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 24)
        assert sum(1 for _ in container.decode(stream)) == 9
    assert Image.open(finished / "image_000003.png").size == (48, 32)
    found = read(finished, "video_000001")
    assert (found["status"], found["file"]) == ("done", "video_000001.mp4")
    assert found["sha256"] == hashlib.sha256((finished / "video_000001.mp4").read_bytes()).hexdigest()
    model = small_model / "model.pt"
    assert found["weights"]["predictor"] == {
        "path": str(model),
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
    }
    block = found["sample"]
    assert (block["prompt"], block["seed"], block["negative_prompt"]) == ("a blue square", 5, "blurry")
    assert block["texts"]["positive"] == "high quality, a blue square"
    assert block["texts"]["negative"].endswith("blurry")
    assert block["settings"]["diffusion"]["num_inference_steps"] == 4
    assert found["run"]["layout"] == {
        "tensor": 1,
        "sequence_parallel": False,
        "context": 1,
        "guidance": 1,
        "data": 1,
    }
    assert {"text_s", "denoise_s", "s_per_step", "decode_s", "write_s", "peak_memory_bytes"} <= set(found["timing"])


def test_a_line_has_its_own_steps_guidance_and_size(finished):
    settings = read(finished, "video_000002")["sample"]["settings"]
    assert settings["diffusion"]["num_inference_steps"] == 3
    assert read(finished, "video_000002")["run"]["guidance_mode"] == "none"
    assert read(finished, "image_000003")["sample"]["settings"]["pipeline_config"]["input_size"] == [1, 32, 48]


def test_the_page_and_the_sheet_show_every_sample(finished):
    page = (finished / "index.html").read_text()
    for name in FILES:
        assert f'src="{name}"' in page
    assert "a blue square" in page and "contact_sheet_000.png" in page
    sheet = np.asarray(Image.open(finished / "contact_sheet_000.png"))
    assert sheet.shape[0] > 3 * 192  # three square videos and a flat image, one below the other


def test_resume_makes_what_is_missing_and_nothing_else(copy, finished, small_model):
    (copy / "video_000001.json").unlink()  # the video alone is not a finished sample
    (copy / "video_000002.mp4").write_bytes(b"half a vid")
    before = (copy / "video_000000.json").stat().st_mtime_ns
    assert sample(flags(small_model, copy, PROMPTS, "--resume")) == ["video_000001.mp4", "video_000002.mp4"]
    assert contents(copy) == contents(finished)
    assert (copy / "video_000000.json").stat().st_mtime_ns == before


def test_resume_makes_again_what_is_asked_for_differently(copy, small_model):
    changed = [{**PROMPTS[0], "steps": 2}, *PROMPTS[1:]]
    assert sample(flags(small_model, copy, changed, "--resume")) == ["video_000000.mp4"]
    (small_model / "other.pt").write_bytes((small_model / "model.pt").read_bytes())
    block = json.loads((small_model / "sample.json").read_text())
    block["predictor"]["from_pretrained"] = str(small_model / "other.pt")
    (small_model / "other.json").write_text(json.dumps(block))
    again = flags(small_model, copy, changed, "--resume")
    again[1] = str(small_model / "other.json")
    assert sample(again) == []  # the same weights elsewhere


def test_without_resume_everything_is_made_again(copy, finished, small_model):
    assert sample(flags(small_model, copy)) == FILES
    assert contents(copy) == contents(finished)


def test_one_failure_does_not_end_the_rest(small_model, finished, tmp_path, monkeypatch):
    overflowing(monkeypatch)
    folder = tmp_path / "samples"
    bad = [PROMPTS[0], {"prompt": "a blue square", "guidance": OVERFLOWS}, *PROMPTS[2:]]
    with pytest.raises(
        SamplingError, match=r"1 of 4 samples could not be made, the first is video_000001: step 2 of 4"
    ):
        sample(flags(small_model, folder, bad))
    assert sorted(path.name for path in folder.glob("video_*.mp4")) == [FILES[0], FILES[2], "video_grid.mp4"]
    assert (folder / FILES[0]).read_bytes() == (finished / FILES[0]).read_bytes()
    entry = read(folder, "video_000001")
    assert entry["status"] == "failed" and "velocity is not finite" in entry["error"]
    page = (folder / "index.html").read_text()
    assert "velocity is not finite" in page
    good = [PROMPTS[0], PROMPTS[1], *PROMPTS[2:]]
    assert sample(flags(small_model, folder, good, "--resume")) == ["video_000001.mp4"]
    assert contents(folder) == contents(finished)


def test_a_record_that_cannot_be_written_does_not_end_the_rest(small_model, tmp_path, monkeypatch):
    """A full disk takes neither a video nor the record of its failure."""
    write = record.write

    def full_for_the_second(path, entry):
        if path.stem == "video_000001":
            raise OSError(28, "No space left on device")
        write(path, entry)

    monkeypatch.setattr(record, "write", full_for_the_second)
    with pytest.raises(SamplingError, match=r"1 of 3 samples could not be made, the first is video_000001: .*No space"):
        sample(flags(small_model, tmp_path / "samples", PROMPTS[:3]))
    assert {path.name for path in (tmp_path / "samples").glob("video_0*.mp4")} == {FILES[0], FILES[2]}


def test_in_a_batch_one_failure_does_not_end_the_others(small_model, tmp_path, monkeypatch):
    from mindspeed_mm.sampling import pipeline

    steps = pipeline.steps

    def sick(denoiser, latents, conditions, *others):
        if conditions.text.sequence.shape[0] > 2 or 7 in _seeds:
            raise SamplingError("step 2 of 4 (sigma 0.5): the velocity is not finite")
        return steps(denoiser, latents, conditions, *others)

    _seeds: list[int] = []
    noise = pipeline.T2VPipeline.noise

    def noting(self, requests):
        _seeds[:] = [request.seed for request in requests]
        return noise(self, requests)

    monkeypatch.setattr(pipeline, "steps", sick)
    monkeypatch.setattr(pipeline.T2VPipeline, "noise", noting)
    lines = [{"prompt": "a red circle", "seed": seed} for seed in (6, 7, 8)]
    with pytest.raises(SamplingError, match="1 of 3 samples could not be made, the first is video_000001"):
        sample(flags(small_model, tmp_path / "samples", lines, "--micro-batch-size", 3))
    assert {path.name for path in (tmp_path / "samples").glob("video_0*.mp4")} == {FILES[0], FILES[2]}


def test_a_line_that_cannot_be_made_is_named_before_anything_is(small_model, tmp_path):
    lines = [{"prompt": "a red circle"}, {"prompt": "a blue square", "size": [10, 32, 32]}]
    with pytest.raises(ConfigError, match=r"samples.jsonl prompt 2: .*10 frames"):
        sample(flags(small_model, tmp_path / "samples", lines))
    assert not (tmp_path / "samples").exists()


def sample_on_ranks(argv: list[str], tensor: int, context: int, guidance: bool) -> list[str]:
    layout = ["--tensor-model-parallel-size", str(tensor), "--context-parallel-size", str(context)]
    layout += ["--cfg-parallel"] if guidance else []
    config = resolve.sample_config(["--device", "cpu", *layout, *argv], world_size=2)
    parallel = ParallelContext.start(tensor_size=tensor, context_size=context, guidance_parallel=guidance)
    return [path.name for path in run(config, CpuPlatform(), parallel)]


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


@pytest.mark.parametrize(
    ("layout", "shares"),
    [((1, 1, False), [[0, 2], [1, 3]]), ((1, 1, True), [[0, 1, 2, 3], []]), ((2, 1, False), [[0, 1, 2, 3], []])],
    ids=["dp2", "cfg2", "tp2"],
)
def test_a_job_is_the_same_on_two_ranks(layout, shares, small_model, finished, tmp_path):
    written = run_ranks(sample_on_ranks, 2, flags(small_model, tmp_path / "samples"), *layout)
    assert written == [[FILES[number] for number in share] for share in shares]
    if layout == (1, 1, False):  # prompts are shared, nothing else
        assert contents(tmp_path / "samples") == contents(finished)
        return
    assert set(contents(tmp_path / "samples")) == set(contents(finished))
    for name in FILES[:3]:  # a pixel may round the other way and move the codec's choices
        assert np.abs(frames(tmp_path / "samples" / name) - frames(finished / name)).mean() < 0.5


def test_after_kill_9_resume_gives_the_same_files(small_model, finished, tmp_path):
    argv = flags(small_model, tmp_path / "samples")
    output = run_until("inference.py", argv, 1, "batch 3 of 4")
    assert "video_000001.mp4" in output
    assert not (tmp_path / "samples" / "index.html").exists()
    result = run_program("inference.py", [*argv, "--resume"])
    assert result.returncode == 0, result.stderr
    assert "2 of 4 samples are there already" in result.stdout
    assert contents(tmp_path / "samples") == contents(finished)
    hidden = [path.name for path in (tmp_path / "samples").iterdir() if path.name.startswith(".")]
    assert hidden == []
    for name in FILES:
        records = [read(folder, Path(name).stem) for folder in (tmp_path / "samples", finished)]
        assert records[0].keys() == records[1].keys()
        for key in set(records[0]) - {"timing"}:
            assert records[0][key] == records[1][key]

"""Two ranks make the samples of one server: tensor parallel, and the halves of guidance."""

import json
import threading
import time

import av
import numpy as np
import pytest
from ranks import run_ranks

from mindspeed_mm.config import resolve
from mindspeed_mm.config.sample import PromptConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.writer import write_video
from mindspeed_mm.serving.maker import SampleMaker
from mindspeed_mm.serving.queue import DONE, FAILED, New, Queue
from mindspeed_mm.serving.together import follow, leading
from mindspeed_mm.serving.worker import Worker

LINE = PromptConfig(prompt="a blue square", seed=5)


def flags(model, *layout: str) -> list[str]:
    return ["--device", "cpu", "--mm-model", str(model / "sample.json"), "--api", *layout]


def samples_on_ranks(model, folder, layout):
    """What became of a sample, one that is cancelled in a block, and a third; then the ranks end."""
    config = resolve.serve_config([*flags(model, *layout), "--save-path", str(folder)], world_size=2).sample
    launch = config.launch
    parallel = ParallelContext.start("gloo", launch.tensor_size, guidance_parallel=launch.guidance_parallel)
    maker = SampleMaker(config, T2VPipeline.from_config(config.model, parallel=parallel), CpuPlatform(), {})
    if not parallel.is_first:
        return follow(maker, parallel)
    with leading(maker, parallel) as leader:
        queue = Queue(folder, 10)
        worker = Worker(queue, leader, pause_s=0.05)
        line, blocks, cancelled = leader.settled(LINE), [], threading.Event()
        for number in range(3):
            queue.add(New(f"video_{number}", "a", {"line": line}, str(number)))

        def stops_the_second() -> None:
            blocks.append(worker._current)
            if (
                worker._current == "video_1" and blocks.count("video_1") == 8
            ):  # in the second step: 6 blocks, 2 of a part
                queue.fail("video_1", "cancelled", "")
                assert worker.cancel("video_1")
                cancelled.set()
            check()

        check, worker._check = worker._check, stops_the_second
        worker.start()
        while queue.counts()[DONE] < 2:
            assert worker.is_alive
            time.sleep(0.02)  # or this thread takes half of the worker's time
        worker.stop()
        states = [queue.get(f"video_{number}").status for number in range(3)]
        queue.close()
    return states, blocks.count("video_1"), cancelled.is_set()


@pytest.mark.parametrize("layout", [("--tensor-model-parallel-size", "2"), ("--cfg-parallel",)])
def test_two_ranks_make_what_one_makes_and_stop_together(small_model, tmp_path, layout):
    (states, blocks, cancelled), _ = run_ranks(samples_on_ranks, 2, small_model, tmp_path, layout)
    assert cancelled and states == [DONE, FAILED, DONE] and blocks == 8
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == ["video_0.mp4", "video_2.mp4"]
    assert (tmp_path / "video_0.mp4").read_bytes() == (tmp_path / "video_2.mp4").read_bytes()
    record = json.loads((tmp_path / "video_0.json").read_text())
    assert record["run"]["layout"]["tensor" if len(layout) == 2 else "guidance"] == 2
    alone = T2VPipeline.from_config(small_model / "sample.json")("a blue square", seed=5, progress=False)
    write_video(alone, tmp_path / "alone.mp4", 24)
    found, wanted = (frames_of(tmp_path / name) for name in ("video_0.mp4", "alone.mp4"))
    difference = np.abs(found - wanted).mean()
    assert found.shape == alone.shape and difference < 2  # rounding alone differs


def frames_of(path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(video=0)])


def test_a_layout_that_does_not_fit_the_processes_is_named(small_model):
    with pytest.raises(ConfigError, match="on 2 processes with this layout .* not 4: use --nproc 2"):
        resolve.serve_config(flags(small_model, "--tensor-model-parallel-size", "2"), world_size=4)

"""What a job leaves open is chosen by the memory that is free: the fastest way that fits, and nothing on a CPU."""

import dataclasses
from pathlib import Path

import pytest
from ranks import log_lines
from sampling_parts import sample_model

from mindspeed_mm.config import model_dialects
from mindspeed_mm.config.launch import LaunchConfig
from mindspeed_mm.config.sample import SampleConfig, SampleModelConfig, SamplingOptions
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.planning.memory import GIB
from mindspeed_mm.planning.sampling import USABLE, Load, Way, choose, load_of, ways
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.sampling.memory import fitted
from mindspeed_mm.schema import build, read_json

PUBLISHED = Path(__file__).resolve().parents[2] / "examples" / "opensoraplan1.5" / "inference_t2v_model1_5.json"
LARGE, MIDDLE, SMALL = (121, 576, 1024), (41, 576, 1024), (33, 352, 640)


class Card(Platform):
    """A device of so much memory, of which all is free."""

    name = "card"

    def __init__(self, gib: float):
        self.gib = gib

    def available_memory(self) -> int:
        return int(self.gib * GIB)


@pytest.fixture(scope="module")
def v1_5() -> SampleModelConfig:
    return build(SampleModelConfig, model_dialects.sample_node(read_json(PUBLISHED)))


def chosen(model, gib: float, size, platform=None, **options) -> tuple[SampleConfig, list[str]]:
    config = SampleConfig(launch=LaunchConfig(), model=model, options=SamplingOptions(**options))
    with log_lines() as lines:
        found = fitted(config, [size], platform or Card(gib), ParallelContext.current(), texts_stay=False)
    return found, lines


def settings(config: SampleConfig) -> tuple:
    return config.options.offload, config.model.ae.use_spatial_tiling


@pytest.mark.parametrize(
    ("gib", "size", "wanted", "said"),
    [
        (80, LARGE, (False, False), "both halves of guidance in one batch, all networks on the device, decoding whole"),
        (24, SMALL, (False, False), "both halves of guidance in one batch, all networks on the device, decoding whole"),
        (24, MIDDLE, (True, False), "halves of guidance one by one, idle networks on the host, decoding whole frames"),
        (16, SMALL, (True, False), "so it may run out of memory; take a smaller input_size"),
    ],
)
def test_the_published_model_on_cards(v1_5, gib, size, wanted, said):
    config, (line,) = chosen(v1_5, gib, size)
    assert settings(config) == wanted
    assert said in line
    assert f"of {gib:.1f} GiB free" in line
    assert config.options.memory_gib == gib  # by which each batch of the job chooses its mode of guidance


@pytest.mark.parametrize("memory", [16, 24, 80])
def test_it_is_the_first_way_that_fits(v1_5, memory):
    every = list(ways(["batched", "sequential"], [False, True], [False, True]))
    assert every[0] == Way("batched", False, False)
    assert [way.tiles for way in every] == [False] * 4 + [True] * 4  # pixels change where nothing else helps
    for size in (SMALL, MIDDLE, LARGE):
        load = load_of(v1_5, [size], tensor=1, ranks=1, text_tokens=512, texts_stay=False)
        fitting = [way for way in every if max(load.peaks(way).values()) <= USABLE * memory * GIB]
        choice = choose(load, every, memory * GIB)
        assert choice.way == (fitting[0] if fitting else min(every, key=lambda way: max(load.peaks(way).values())))
        assert choice.fits == bool(fitting)


def test_tiles_are_taken_where_whole_frames_alone_do_not_fit():
    load = Load(denoiser=8 * GIB, autoencoder=GIB, texts=0, half=GIB, whole=30 * GIB, tiled=4 * GIB)
    choice = choose(load, ways(["batched"], [False, True], [False, True]), 16 * GIB)
    assert choice.way == Way("batched", False, True)
    assert "decoding whole frames would need 31.0 GiB" in str(choice)


def test_what_the_user_sets_is_kept_and_warned_of_with_the_fix(v1_5):
    config, (line,) = chosen(v1_5, 24, MIDDLE, offload=False, guidance_mode="batched")
    assert (config.options.offload, config.options.guidance_mode) == (False, "batched")
    assert line.endswith("so it may run out of memory; leave out --cfg-mode and --no-offload, then it fits")
    config, (line,) = chosen(v1_5, 80, SMALL, spatial_tiles="on", offload=True)
    assert settings(config) == (True, True)
    assert "run out" not in line
    tiled = dataclasses.replace(v1_5, ae=dataclasses.replace(v1_5.ae, use_spatial_tiling=True))
    assert chosen(tiled, 80, SMALL)[0].model.ae.use_spatial_tiling
    assert not chosen(tiled, 80, SMALL, spatial_tiles="off")[0].model.ae.use_spatial_tiling


def test_memory_of_the_flag_replaces_what_is_free(v1_5):
    config, (line,) = chosen(v1_5, 80, MIDDLE, memory_gib=24.0)
    assert settings(config) == (True, False)
    assert "of 24.0 GiB free" in line


def test_more_ranks_hold_less(v1_5):
    one, two = (load_of(v1_5, [LARGE], tensor=n, ranks=n, text_tokens=512, texts_stay=True) for n in (1, 2))
    assert two.denoiser < 0.51 * one.denoiser
    assert two.half < 0.51 * one.half
    assert (two.autoencoder, two.texts, two.whole) == (one.autoencoder, one.texts, one.whole)


def test_on_a_cpu_nothing_is_chosen():
    model = sample_model(size=(121, 1088, 1920))
    config, lines = chosen(model, 0, (121, 1088, 1920), CpuPlatform())
    assert lines == []
    assert config.model == model
    assert (config.options.offload, config.options.guidance_mode) == (False, "auto")
    assert config.options.memory_gib is None

"""AdamW with an EMA against the trace of the original's fused_ema_adamw: its kernel's place, and the twin elsewhere."""

import json

import ema_runs
import pytest

from mindspeed_mm.platforms.cpu import CpuPlatform

TRACES = ["trace_default_warmup", "trace_v15_hyper", "trace_decay_0.3_warmup_crosses"]
KERNELS = {"twin": None, "kernel": ema_runs.kernel, "kernel that copies": ema_runs.copying_kernel}
TOLERANCE = 1e-6  # relative to the largest value


@pytest.fixture(scope="module")
def recorded(golden) -> dict:
    return json.loads(golden("predictor/ema_adamw.json").read_text())


def compare(found: list[dict], trace: list[dict]) -> None:
    assert len(found) == len(trace)
    for mine, theirs in zip(found, trace, strict=True):
        assert mine["kernel_step"] == theirs["kernel_step"]
        for name in ("param", "exp_avg", "exp_avg_sq", "ema_params"):
            largest = max(map(abs, theirs[name]))
            assert mine[name] == pytest.approx(theirs[name], rel=0, abs=TOLERANCE * largest), (theirs["step"], name)


@pytest.fixture(scope="module")
def platform() -> CpuPlatform:
    platform = CpuPlatform()
    platform.prepare()
    return platform


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("trace", TRACES)
def test_the_recorded_trace(recorded, platform, trace, kernel):
    compare(ema_runs.run(recorded[trace], platform, kernel, distributed=False), recorded[trace]["trace"])


@pytest.mark.parametrize("kernel", [None, ema_runs.kernel], ids=["twin", "kernel"])
@pytest.mark.parametrize("distributed", [False, True])
def test_a_resumed_run_follows_the_same_trace(recorded, platform, kernel, distributed):
    """The original forgot the number of updates, so its first decay after a resume was 2/11 again."""
    case = recorded["trace_default_warmup"]
    compare(ema_runs.run(case, platform, kernel, distributed, resume_after=3), case["trace"])


def test_the_decay_of_every_step(recorded, platform):
    engine_less = ema_runs.Ema.__new__(ema_runs.Ema)
    engine_less.decay = recorded["formula"]["ema_decay_default"]
    for step, decay in recorded["decay_schedule"].items():
        engine_less.updates = int(step) - 1
        assert engine_less._next_decay() == pytest.approx(decay, rel=1e-12), step


def test_half_precision_shards_are_refused(platform):
    from mindspeed_mm.optim import ema_adamw

    with pytest.raises(ValueError, match=r"a shard \[2\] of torch.bfloat16; its kernel takes fp32 only"):
        ema_adamw._check(ema_runs.torch.zeros(2, dtype=ema_runs.torch.bfloat16))

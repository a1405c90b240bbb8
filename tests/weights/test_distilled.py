"""Distilled weights say so in every format, and sampling takes its defaults from them."""

import dataclasses

import pytest
import torch
from checkpoint_files import whole_weights

from mindspeed_mm.config.distillation import DistillConfig, check_same, read_record
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.weights import merge_checkpoint, split_checkpoint
from mindspeed_mm.weights.distilled import distilled_of, suited
from mindspeed_mm.weights.inspect import describe

DISTILL = DistillConfig(method="steps", teacher="teacher.pt", guidance=4.0, steps=4, teacher_steps=3)
RECORD = DISTILL.record(DiffusionConfig(shift=3.0), "f" * 64)
assert RECORD is not None
BASE = DiffusionConfig(num_inference_steps=50, solver="unipc", shift_of_steps=((8, 5.0),), shift=1.0)


def test_the_record_goes_with_the_weights_from_format_to_format(tmp_path):
    torch.save({"model": whole_weights(), "distilled": RECORD.plain()}, tmp_path / "run.pt")
    split_checkpoint(tmp_path / "run.pt", tmp_path / "split", 2)
    merged = merge_checkpoint(tmp_path / "split", tmp_path / "pt")
    one = merge_checkpoint(merged, tmp_path / "one", format="safetensors", dtype="bf16")
    several = merge_checkpoint(one, tmp_path / "several", format="safetensors", largest=100_000)
    assert several.name.endswith(".index.json")
    for place in (tmp_path / "split", merged, one, several, tmp_path / "several"):
        assert distilled_of(place) == RECORD
    assert torch.load(merged, weights_only=True)["distilled"]["steps"] == 4
    assert any("samples in 4 steps without guidance" in line for line in describe(one, norms=False))


def test_other_weights_say_nothing_and_change_nothing(tmp_path):
    torch.save(whole_weights(), tmp_path / "model.pt")
    merged = merge_checkpoint(tmp_path / "model.pt", tmp_path, format="safetensors")
    assert distilled_of(merged) is None
    assert suited(BASE, None) == BASE
    assert "distilled" not in torch.load(merge_checkpoint(merged, tmp_path / "again"), weights_only=True)


def test_sampling_takes_what_the_weights_were_made_for_unless_flags_say_otherwise(caplog):
    with caplog.at_level("INFO", logger="mindspeed_mm"):
        found = suited(BASE, RECORD)
    assert (found.num_inference_steps, found.guidance_scale, found.solver) == (4, 1.0, "euler")
    assert (found.sampling_shift, found.guides_at(0.5)) == (3.0, False)
    assert len(caplog.records) == 1
    assert "distilled to sample in 4 steps without guidance: guidance_scale 1.0" in caplog.text
    kept = suited(dataclasses.replace(BASE, num_inference_steps=8), RECORD, fixed=("num_inference_steps",))
    assert (kept.num_inference_steps, kept.guidance_scale) == (8, 1.0)


def test_a_student_of_guidance_alone_leaves_the_steps():
    record = DistillConfig(method="guidance", guidance=4.0).record(BASE, None)
    assert suited(BASE, record) == dataclasses.replace(BASE, guidance_scale=1.0)
    assert str(record) == "without guidance"


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("quadratic", [True, False])
def test_the_schedule_is_the_students(dynamic, quadratic):
    plain = dataclasses.replace(BASE, shift_of_steps=())
    student = dataclasses.replace(plain, use_dynamic_shifting=dynamic, use_linear_quadratic_schedule=quadratic)
    found = suited(plain, DISTILL.record(student, None))
    assert found.use_linear_quadratic_schedule == quadratic
    assert found.use_dynamic_shifting == (dynamic and not quadratic)


@pytest.mark.parametrize(
    ("mine", "held", "message"),
    [
        (RECORD, dataclasses.replace(RECORD, teacher="e" * 64), "another teacher: its weights have fingerprint eeee"),
        (
            RECORD,
            dataclasses.replace(RECORD, teacher_guidance=2.0),
            "had teacher_guidance 2.0, and has teacher_guidance 4.0 ",
        ),
        (None, RECORD, "of a run with --distill"),
        (RECORD, None, "of a run without --distill"),
    ],
)
def test_a_run_goes_on_only_with_the_same_distillation(mine, held, message):
    with pytest.raises(CheckpointError, match=message):
        check_same(mine, held and held.plain())


def test_a_teacher_may_have_moved():
    check_same(RECORD, dataclasses.replace(RECORD, teacher_path="elsewhere.pt").plain())
    check_same(None, None)


@pytest.mark.parametrize(
    "damage", [{"method": 3}, {"steps": 0}, {"steps": True}, {"guidance": "1"}, {"schedule": "odd"}, {"shift": -1.0}]
)
def test_a_damaged_record_is_refused(damage):
    with pytest.raises(CheckpointError, match=r"a\.pt: what it says of its distillation is damaged"):
        read_record(RECORD.plain() | damage, "a.pt")
    assert read_record({**RECORD.plain(), "later": [1]}, "a.pt") == RECORD

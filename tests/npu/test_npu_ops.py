"""Operators of `ops/` on a simulated NPU equal their plain twins, forward and backward."""

import cases_ops
import pytest
import torch

FP32 = 1e-6  # relative to the largest value
BF16 = 2**-7  # one step of bf16


@pytest.mark.parametrize("name", cases_ops.CASES)
def test_an_operator_equals_its_plain_twin(npu, name):
    for what, difference in npu.one(cases_ops.compare, name, torch.float32).items():
        assert difference < FP32, what


@pytest.mark.parametrize("name", cases_ops.CASES)
def test_in_bf16_it_differs_by_a_rounding(npu, name):
    for what, difference in npu.one(cases_ops.compare, name, torch.bfloat16).items():
        assert difference < BF16, what

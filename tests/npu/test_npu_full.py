"""The published sizes: per-rank blocks at TP=8 and the autoencoder on FakeTensors, and the kernels of a training step."""

import cases_full
import pytest


def test_the_autoencoder_on_fake_tensors(npu):
    parameters, latents, video = npu.one(cases_full.fake_autoencoder)
    assert parameters == 227_035_816
    assert (latents, video) == ([1, 32, 3, 64, 64], [1, 3, 17, 512, 512])


def test_blocks_on_fake_tensors(npu):
    found = npu.one(cases_full.fake_blocks)
    assert len(found) == 3
    for name, (shape, without_gradient) in found.items():
        assert shape == [36864 // 8, 1, 3072], name
        assert without_gradient == [], name


@pytest.fixture(scope="module")
def fused(npu):
    return npu.one(cases_full.kernels, True, True)


@pytest.fixture(scope="module")
def plain(npu):
    return npu.one(cases_full.kernels, False, False)


def test_kernels_of_a_block(fused, plain):
    """What is one kernel each on an NPU, of the plain twins' many. docs/ascend.md has the table."""
    block = fused["block"]
    assert block["aclnnRmsNorm"] == block["aclnnRmsNormGrad"] == 4  # of queries and keys, of video and text
    assert block["aclnnRotaryPositionEmbeddingV2"] == 12  # queries and keys x 3 axes x forward and backward
    assert block["aclnnFlashAttentionVarLenScore"] == block["aclnnFlashAttentionUnpaddingScoreGrad"] == 1
    assert block["aclnnLayerNormBackward"] == 4
    assert not {"aclnnRsqrt", "aclnnSoftmax", "aclnnBatchMatMul"} & set(block)
    assert sum(block.values()) <= 325 < sum(plain["block"].values())


def test_operands_of_a_block(fused):
    """36864 video and 512 text tokens in 8 Skiparse parts, of 100 real words each; 3 of 24 heads on this rank."""
    (attention,) = (row for row in fused["operands"] if row.startswith("aclnnFlashAttentionVarLenScore "))
    assert "bf16[40960,3,128]" in attention  # queries: 8 (36864 / 8 + 512)
    assert "bf16[37664,3,128]" in attention  # real keys: 8 (36864 / 8 + 100)
    assert not any("bool[5120,5120]" in row or "bool[8,1,5120,5120]" in row for row in fused["operands"])
    assert not any("fp64" in row for row in fused["operands"])


def test_kernels_of_a_training_step(fused):
    """All 32 blocks forward and backward with their feed-forwards recomputed, the gradient norm; AdamW and the EMA apart."""
    step, update = fused["step"], fused["update"]
    assert sum(step.values()) <= 10_400 and sum(update.values()) <= 3_650
    assert step["aclnnFlashAttentionVarLenScore"] == step["aclnnFlashAttentionUnpaddingScoreGrad"] == 32
    assert step["aclnnRmsNorm"] == 4 * 32
    assert update["aclnnApplyAdamWV2"] == 1178  # one per parameter of this rank
    assert "HcclAllGather" not in update  # a data rank alone has all weights

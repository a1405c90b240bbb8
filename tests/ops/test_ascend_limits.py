"""What Ascend's kernels compute wrongly without a word is refused before the call. Needs no NPU: nothing is launched."""

import pytest
import torch

from mindspeed_mm.ops import ascend

B, S, L, H, D = 2, 5, 7, 4, 8


def heads_first(queries=S, keys=L, heads=H, dim=D, dtype=torch.float32, batch=B):
    q = torch.zeros(batch, heads, queries, dim, dtype=dtype)
    return q, torch.zeros(batch, heads, keys, dim, dtype=dtype), torch.zeros(batch, heads, keys, dim, dtype=dtype)


def packed(queries=6, keys=9):
    return torch.zeros(queries, H, D), torch.zeros(keys, H, D), torch.zeros(keys, H, D)


def test_one_dtype_and_one_that_the_kernel_has():
    q, k, v = heads_first()
    with pytest.raises(ValueError, match="q torch.float32, k torch.bfloat16, v torch.float32; need one dtype"):
        ascend.attend_heads_first(q, k.bfloat16(), v)
    with pytest.raises(
        ValueError, match="attention: torch.float64; an NPU computes it in float32, bfloat16 or float16"
    ):
        ascend.attend_heads_first(q.double(), k.double(), v.double())
    with pytest.raises(ValueError, match="rms_norm: torch.float64"):
        ascend.rms_norm(torch.zeros(3, 8, dtype=torch.float64), torch.zeros(8), 1e-6)


def test_heads_divide():
    q, k, v = heads_first()
    with pytest.raises(ValueError, match=r"q \[2, 4, 5, 8\], k \[2, 3, 7, 8\].*those of k have to divide those of q"):
        ascend.attend_heads_first(q, k[:, :3], v[:, :3])
    with pytest.raises(ValueError, match="at most 256 heads"):
        ascend.attend_heads_first(*heads_first(heads=257))
    with pytest.raises(ValueError, match="k and v need one shape"):
        ascend.attend_heads_first(q, k, v[:, :, 1:])
    with pytest.raises(ValueError, match="need one batch size"):
        ascend.attend_heads_first(q[:1], k, v)
    with pytest.raises(ValueError, match="no axis may be empty"):
        ascend.attend_heads_first(q, k[:, :, :0], v[:, :, :0])


def test_head_dims():
    q, k, v = heads_first()
    with pytest.raises(ValueError, match="need one head_dim of at most 768"):
        ascend.attend_heads_first(q[..., :4], k, v)
    with pytest.raises(ValueError, match="need one head_dim of at most 768"):
        ascend.attend_heads_first(*heads_first(dim=769))


def test_the_longest_sequence():
    q = torch.zeros(1, 1, 1, 1).expand(1, 1, 1_000_001, 1)
    with pytest.raises(ValueError, match="at most 1000000 tokens, split the sequence"):
        ascend.attend_heads_first(q, q, q)


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(B, 1, S, L),
        torch.zeros(B, 1, S, L, dtype=torch.uint8),
        torch.zeros(B, 1, 1, L, dtype=torch.bool),
        torch.zeros(B, S, L, dtype=torch.bool),
        torch.zeros(L, S, dtype=torch.bool),
    ],
    ids=["float", "uint8", "a row per sample", "three axes", "keys first"],
)
def test_masks(mask):
    words = r"attention: mask \[.*\] torch.* need torch.bool, True where masked, in one of"
    with pytest.raises(ValueError, match=words):
        ascend.attend_heads_first(*heads_first(), mask)
    with pytest.raises(ValueError, match=words):
        ascend.attend_tokens_first(*(x.permute(2, 0, 1, 3) for x in heads_first()), mask)


@pytest.mark.parametrize(
    ("q_ends", "k_ends", "words"),
    [
        ([2, 5], [4, 9], r"q_ends \[2, 5\]...5: .* the last is the number of tokens, 6"),
        ([2, 6], [4, 10], r"k_ends .* the number of tokens, 9"),
        ([0, 2, 6], [4, 9], "q_ends has 3 sequences, k_ends 2"),
        ([4, 2], [4, 9], "need cumulative ends, without a leading 0"),
        ([2, 6], [0, 9], "sequence 0 has 2 queries and no key"),
        ([], [9], r"q_ends \[\]: need a list of Python ints"),
        ([torch.tensor(6)], [9], "need a list of Python ints, one per sequence"),
    ],
)
def test_ends_of_packed_sequences(q_ends, k_ends, words):
    with pytest.raises(ValueError, match=words):
        ascend.attend_packed(*packed(), q_ends, k_ends)


def test_the_most_sequences():
    with pytest.raises(ValueError, match="q_ends: 1025 sequences, an NPU packs at most 1024; use smaller batches"):
        ascend.attend_packed(*packed(1025, 1025), list(range(1, 1026)), list(range(1, 1026)))


def test_rms_weights():
    with pytest.raises(ValueError, match=r"weight \[7\] for x \[3, 8\]; need \[8\]"):
        ascend.rms_norm(torch.zeros(3, 8), torch.zeros(7), 1e-6)
    with pytest.raises(ValueError, match=r"weight \[1, 8\]"):
        ascend.rms_norm(torch.zeros(3, 8), torch.zeros(1, 8), 1e-6)


def test_rotation():
    x, table = torch.zeros(S, B, H, D), torch.zeros(S, 1, 1, D)
    with pytest.raises(ValueError, match=r"need \[5, 1, 1, 8\] torch.float32"):
        ascend.rotate(x, table[:4], table, (4, 2, 2))
    with pytest.raises(ValueError, match="need .* torch.float32"):
        ascend.rotate(x, table.bfloat16(), table.bfloat16(), (4, 2, 2))
    with pytest.raises(ValueError, match=r"parts \[3, 3, 2\] of 8 channels; need even ones"):
        ascend.rotate(x, table, table, (3, 3, 2))
    with pytest.raises(ValueError, match=r"parts \[4, 2\] of 8 channels"):
        ascend.rotate(x, table, table, (4, 2))
    with pytest.raises(ValueError, match="batch and heads must be below 1000 each"):
        ascend.rotate(torch.zeros(S, 1000, 1, D), table, table, (4, 2, 2))

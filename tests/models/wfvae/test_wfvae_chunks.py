"""Where clips are cut: the original's table, and what every cut must satisfy."""

import json

import pytest
import torch
from torch import nn

from mindspeed_mm.families.wfvae_spans import Span, chunk_sizes, decode_spans, encode_spans
from mindspeed_mm.models.wfvae.chunks import Chunk


def test_sizes_equal_the_originals_table_for_every_length(golden):
    table = json.loads(golden("vae/chunk_table.json").read_text())["table"]
    for stride_t, rows in table.items():
        for frames, sizes in rows.items():
            found = chunk_sizes(int(frames), int(stride_t))
            assert found == (None if sizes is None else tuple(sizes)), f"stride {stride_t}, {frames} frames"


@pytest.mark.parametrize("name", ["wfvae8_ln_a", "wfvae8_gn_c", "wfvae8_ln_noattn_e"])
def test_spans_equal_the_originals(golden, name):
    compared = 0
    for row in json.loads(golden(f"vae/{name}.json").read_text())["tiling"]:
        frames = row["T"]
        if frames % 8 != 1:
            continue  # the original cuts such clips badly or not at all; here `encode` refuses them
        latents = (frames - 1) // 8 + 1
        if "enc_chunks" not in row:  # the original raises
            assert encode_spans(frames, 8) == [Span(0, frames)]
            assert decode_spans(latents, 8) == [Span(0, latents)]
            continue
        assert [[span.start, span.stop] for span in encode_spans(frames, 8)] == row["enc_chunks"]
        assert [[span.start, span.stop] for span in decode_spans(latents, 8)] == row["dec_chunks"]
        compared += 1
    assert compared


@pytest.mark.parametrize("stride_t", [4, 8])
def test_spans_cover_a_clip_once_and_in_order(stride_t):
    for latents in range(1, 80):
        frames = (latents - 1) * stride_t + 1
        for spans, length in ((encode_spans(frames, stride_t), frames), (decode_spans(latents, stride_t), latents)):
            assert spans[0].start == 0 and spans[-1].stop == length
            assert all(a.stop == b.start for a, b in zip(spans, spans[1:], strict=False))


@pytest.mark.parametrize("stride_t", [4, 8])
def test_every_inner_decoder_chunk_looks_one_latent_ahead(stride_t):
    for latents in range(1, 200):
        spans = decode_spans(latents, stride_t)
        assert [span.lookahead for span in spans] == [0] + [1] * (len(spans) - 2) + [0] * (len(spans) > 1)
        # A last chunk of one latent would have no neighbour to be interpolated with.
        assert len(spans) == 1 or spans[-1].stop - spans[-1].start > 1


@pytest.mark.parametrize(("stride_t", "frames"), [(8, 1), (8, 9), (4, 1), (4, 5)])
def test_short_clips_are_not_cut(stride_t, frames):
    assert chunk_sizes(frames, stride_t) is None
    assert encode_spans(frames, stride_t) == [Span(0, frames)]


def test_a_chunk_carries_the_frames_before_its_lookahead():
    module, video = nn.Identity(), torch.arange(6.0).view(1, 1, 6, 1, 1)
    chunk = Chunk(first=False, last=False, lookahead=1)
    chunk.finer().keep(module, video, 2)
    tail = chunk.take(module)
    assert tail.flatten().tolist() == [2.0, 3.0]
    assert tail.untyped_storage().nbytes() == 2 * 4  # not a view of the whole video
    assert chunk.take(module) is None


def test_the_last_chunk_carries_nothing():
    chunk = Chunk(first=False, last=True)
    chunk.keep(nn.Identity(), torch.zeros(1, 1, 3, 1, 1), 2)
    assert not chunk.tails

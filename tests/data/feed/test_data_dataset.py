"""Samples: right frames, right size, and nothing but (seed, epoch, index) decides what they are."""

import dataclasses
import json
import random
import shutil
import sys

import numpy as np
import pytest
import torch
from data_helpers import LetterTokenizer, data_config, frame_number, row, write_clip, write_list
from PIL import Image

from mindspeed_mm.data.feed.dataset import ClipDataset, Tokens, build_dataset
from mindspeed_mm.data.feed.substitutes import Substitutes, Taken
from mindspeed_mm.data.feed.video import VideoSource
from mindspeed_mm.data.lists.filters import filter_rows
from mindspeed_mm.data.lists.sources import read_list
from mindspeed_mm.data.stored.sources import possible_texts
from mindspeed_mm.errors import ConfigError, DataError

AS_THEY_ARE = {"max_height": 64, "max_width": 128}  # the size of the clips: frames stay readable


def dataset_of(data_path, preprocess=None, second=None, seed=5, **dataset) -> ClipDataset:
    config = data_config(data_path, preprocess, **dataset).dataset_param
    clips = filter_rows(read_list(data_path), config.preprocess_parameters, None).clips
    videos, texts = VideoSource(config.preprocess_parameters), Tokens(LetterTokenizer(), second)
    return ClipDataset(clips, config, videos, texts, seed=seed)


def taken(dataset: ClipDataset, index: int, epoch: int = 0, seed: int = 5, max_tries: int = 10) -> Taken:
    return Substitutes(dataset, seed, max_tries).take(index, epoch)


def numbers(sample) -> list[int]:
    """The numbers that the frames of a sample show; for clips that were not resized."""
    frames = ((sample.video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [frame_number(frame) for frame in frames.permute(1, 2, 3, 0).numpy()]


def same(one, other) -> bool:
    return torch.equal(one.video, other.video) and (one.caption, one.path) == (other.caption, other.path)


def test_a_sample_has_the_promised_form(clip_folder):
    dataset = dataset_of(clip_folder / "data.txt", second=LetterTokenizer(7))
    sample = dataset.sample(3, 0)
    assert len(dataset.paths) == 12 and set(dataset.keys) == {"9x32x64"}
    assert sample.video.shape == (3, 9, 32, 64) and sample.video.dtype == torch.float32
    assert -1.2 < sample.video.min() < -0.5 and 0.5 < sample.video.max() < 1.2
    assert sample.text.ids.shape == (1, 16) and sample.pooled_text.keep.shape == (1, 7)
    assert sample.caption == "caption of" and sample.path.endswith("/03.mp4")  # the file name is cleaned away
    assert sample.key == "9x32x64" and taken(dataset, 3).substitutions == ()


def test_frames_are_a_window_of_the_clip_that_moves_from_epoch_to_epoch(clip_folder):
    dataset = dataset_of(clip_folder / "data.txt", AS_THEY_ARE)
    starts = set()
    for epoch in range(24):
        shown = numbers(dataset.sample(0, epoch))
        assert shown == list(range(shown[0], shown[0] + 9))
        starts.add(shown[0])
    assert starts == {0, 1, 2, 3}  # 12 frames, windows of 9: the last start too


def test_samples_depend_on_seed_epoch_and_index_alone(clip_folder):
    dataset, again = (dataset_of(clip_folder / "data.txt", AS_THEY_ARE) for _ in range(2))
    for index in (7, 0, 3, 7):
        random.seed(index)  # neither the global generators nor earlier accesses count
        torch.manual_seed(index)
        assert same(dataset.sample(index, 2), again.sample(index, 2))
    other = dataset_of(clip_folder / "data.txt", AS_THEY_ARE, seed=6)
    assert any(not same(dataset.sample(index, 0), other.sample(index, 0)) for index in range(6))


def test_two_items_are_two_clips(clip_folder):
    # the original hands out one dictionary, so that all entries of a batch are its last item
    dataset = dataset_of(clip_folder / "data.txt")
    first, second = dataset.sample(0, 0), dataset.sample(1, 0)
    assert first.path != second.path and first.video.data_ptr() != second.video.data_ptr()


def test_cut_and_crop_choose_frames_and_pixels(tmp_path):
    write_clip(tmp_path / "a.mp4", 30)
    entries = [row("a.mp4", num_frames=9, cut=[17, 26], crop=[0, 128, 0, 32], height=32, width=128)]
    dataset = dataset_of(write_list(tmp_path, entries), {"max_height": 32, "max_width": 128, "min_h_div_w_ratio": 0.2})
    assert numbers(dataset.sample(0, 0)) == list(range(17, 26))


def test_a_clip_is_resampled_to_the_training_rate(tmp_path):
    write_clip(tmp_path / "a.mp4", 40)
    entries = [{**row("a.mp4", num_frames=22), "fps": 60}]
    dataset = dataset_of(write_list(tmp_path, entries), AS_THEY_ARE)
    assert numbers(dataset.sample(0, 0)) == [0, 2, 5, 7, 10, 12, 15, 17, 20]


def test_images_and_videos_in_one_list(clip_folder, tmp_path):
    for name in ("a.JPG", "b.png"):
        Image.fromarray(np.full((80, 160, 3), 255, np.uint8)).save(tmp_path / name)
    shutil.copy(clip_folder / "00.mp4", tmp_path)
    entries = [
        row("00.mp4"),
        row("a.JPG", height=80, width=160),
        {**row("b.png", height=80, width=160), "num_frames": None, "fps": None},
    ]
    dataset = dataset_of(write_list(tmp_path, entries))
    assert dataset.keys == ("9x32x64", "1x32x64", "1x32x64")
    for index in (1, 2):
        sample = dataset.sample(index, 0)
        assert sample.video.shape == (3, 1, 32, 64)
        assert torch.allclose(sample.video, torch.ones(()), atol=1e-2)


def test_captions_are_chosen_cleaned_and_dropped(clip_folder, tmp_path):
    entries = [row("00.mp4", cap=["First <b>One</b>", "SECOND"], aesthetic=6.5)]
    shutil.copy(clip_folder / "00.mp4", tmp_path)
    data = write_list(tmp_path, entries)

    def captions(preprocess=None, **dataset):
        made = dataset_of(data, preprocess, **dataset)
        return {made.sample(0, epoch).caption for epoch in range(40)}

    assert captions() == {"first one", "second"}
    assert captions(use_clean_caption=False) == {"first <b>one</b>", "second"}
    assert captions({"cfg": 0.5}) == {"first one", "second", ""}
    assert captions({"cfg": 1.0}, enable_text_preprocessing=False) == {"First <b>One</b>", "SECOND"}
    with_score = captions({"use_aesthetic": True})
    assert len(with_score) > 10 and all("first one" in text or "second" in text for text in with_score)


def test_trigger_words_and_shuffled_tags_are_drawn_from_the_sample_alone(clip_folder, tmp_path):
    shutil.copy(clip_folder / "00.mp4", tmp_path)
    (tmp_path / "data.json").write_text(json.dumps([row("00.mp4", cap="one, two, three")]))
    (tmp_path / "data.txt").write_text(f"{tmp_path},data.json,2\n{tmp_path},data.json,trigger=\n")
    options = {"trigger_word": "ohwx", "shuffle_tags": True, "keep_tags": 1}
    made = dataset_of(tmp_path / "data.txt", options)
    assert made.paths == (f"{tmp_path}/00.mp4",) * 3
    seen = [[made.sample(index, epoch).caption for epoch in range(12)] for index in range(3)]
    assert set(seen[0]) == set(seen[1]) == {"ohwx, one, two, three", "ohwx, one, three, two"}
    assert set(seen[2]) == {"one, two, three", "one, three, two"}
    assert seen[0] != seen[1]  # the copies of a row are samples of their own
    again = dataset_of(tmp_path / "data.txt", options)
    assert [again.sample(1, epoch).caption for epoch in reversed(range(12))] == seen[1][::-1]
    (text,) = possible_texts(made.clips[0].row, dataclasses.replace(made.config))
    assert text == "ohwx, one, two, three"
    with pytest.raises(ConfigError, match="trigger word 'a1b2c3'"):
        dataset_of(tmp_path / "data.txt", {"trigger_word": "a1b2c3"})


def broken_list(folder, good, bad):
    """A list of `good` clips and `bad` files by name, all said to be clips of 12 frames."""
    for number, name in enumerate(good):
        write_clip(folder / name, 12, first=20 * number)
    for name in bad:
        (folder / name).write_bytes(b"this is not a video")
    return write_list(folder, [row(name, num_frames=12) for name in (*good, *bad)])


def test_a_bad_file_is_replaced_by_another_clip_of_its_shape(tmp_path):
    data = broken_list(tmp_path, ["a.mp4", "b.mp4"], ["bad.mp4"])
    dataset = dataset_of(data)
    found = taken(dataset, 2, epoch=4)
    sample = found.sample
    assert sample.path in (f"{tmp_path}/a.mp4", f"{tmp_path}/b.mp4")
    assert sample.video.shape == (3, 9, 32, 64)
    (substitution,) = found.substitutions
    assert substitution.path == f"{tmp_path}/bad.mp4"
    assert substitution.reason.startswith(f"{tmp_path}/bad.mp4: cannot be decoded: ")
    assert same(sample, taken(dataset_of(data), 2, epoch=4).sample)
    # what comes instead is the sample that it would have been itself, and it varies
    index = 0 if sample.path.endswith("a.mp4") else 1
    assert torch.equal(sample.video, dataset.sample(index, epoch=4).video)
    assert {taken(dataset, 2, epoch).sample.path for epoch in range(12)} == {f"{tmp_path}/a.mp4", f"{tmp_path}/b.mp4"}


def test_tries_are_bounded(tmp_path):
    bad = [f"bad{number}.mp4" for number in range(6)]
    data = broken_list(tmp_path, ["good.mp4"], bad)
    with pytest.raises(DataError, match=r"^3 files of shape 9x32x64 in a row cannot be used; the last reason: .*bad\d"):
        for epoch in range(20):
            taken(dataset_of(data), 1, epoch, max_tries=3)
    assert taken(dataset_of(data), 1, max_tries=7).sample.path.endswith("good.mp4")
    with pytest.raises(DataError, match="^1 files of shape"):
        taken(dataset_of(broken_list(tmp_path, [], ["bad0.mp4"])), 0)


def test_a_list_that_lies_about_length_or_crop_gives_substitutes(tmp_path, clip_folder):
    for name in ("00.mp4", "01.mp4", "02.mp4"):
        shutil.copy(clip_folder / name, tmp_path)
    entries = [
        row("00.mp4", num_frames=12),
        row("01.mp4", num_frames=9, cut=[8, 17]),  # frames 8 to 16 of a file of 12
        row("02.mp4", num_frames=12, crop=[200, 300, 0, 64]),
    ]
    dataset = dataset_of(write_list(tmp_path, entries))
    reasons = [item.reason for index in (1, 2) for item in taken(dataset, index, max_tries=3).substitutions]
    assert any("01.mp4: has 12 frames; frame 16 was asked for" in reason for reason in reasons)
    assert any("02.mp4: crop [200, 300, 0, 64] (x0, x1, y0, y1) leaves no pixels" in reason for reason in reasons)


def test_a_size_that_the_transforms_do_not_make_is_found_by_each_access(tmp_path, clip_folder):
    shutil.copy(clip_folder / "00.mp4", tmp_path)
    multi = {
        "force_resolution": False,
        "max_hxw": 8192,
        "min_hxw": 1,
        "hw_stride": 16,
        "min_h_div_w_ratio": 0.2,
        "train_pipeline": {
            "video": [
                {"trans_type": "ToTensorVideo"},
                {"trans_type": "SpatialStrideCropVideo", "param": {"stride": 16, "force_5_ratio": False}},
            ]
        },
    }
    dataset = dataset_of(write_list(tmp_path, [row("00.mp4", height=48, width=128, num_frames=12)]), multi)
    with pytest.raises(DataError, match=r"00.mp4: 9x64x128 after decoding .* became 9x64x128, but .*promised 9x48x128"):
        dataset.sample(0, 0)


def test_transforms_that_cannot_make_the_promised_size_are_a_config_error(clip_folder):
    def multi(stride):
        steps = [
            {"trans_type": "ToTensorVideo"},
            {"trans_type": "MaxHWStrideResizeVideo", "param": {"max_hxw": 6000, "hw_stride": stride}},
            {"trans_type": "SpatialStrideCropVideo", "param": {"stride": stride}},
        ]
        sizes = {"force_resolution": False, "force_5_ratio": True, "hw_stride": 32, "max_hxw": 6000}
        return {**sizes, "train_pipeline": {"video": steps}}

    assert set(dataset_of(clip_folder / "data.txt", multi(32)).keys) == {"9x32x96"}
    with pytest.raises(ConfigError, match="train_pipeline.video: makes .* of 64x128 .*hw_stride"):
        dataset_of(clip_folder / "data.txt", multi(16))
    with pytest.raises(ConfigError, match="train_pipeline.video: holds no ToTensorVideo"):
        dataset_of(clip_folder / "data.txt", {"train_pipeline": {}})


def test_a_reader_that_is_not_installed_is_found_out_at_once(clip_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(DataError, match="pip install decord"):
        dataset_of(clip_folder / "data.txt", {"video_reader_type": "decord"})


def test_real_clips_and_tokenizers(clips, encoder_folder, tmp_path):
    data = tmp_path / "data.txt"
    data.write_text(f"{clips},{clips}/annotations.json\n")
    config = data_config(
        data,
        {"train_fps": 8.05, "too_long_factor": 12.0, "max_height": 64, "max_width": 96},
        model_max_length=32,
        tokenizer_config={"from_pretrained": str(encoder_folder / "t5")},
        tokenizer_config_2={"from_pretrained": str(encoder_folder / "clip")},
    )
    dataset = build_dataset(config.dataset_param, global_batch_size=1, seed=0)
    for index in range(6):
        sample = dataset.sample(index, 0)
        assert taken(dataset, index, seed=0).substitutions == () and sample.video.shape == (3, 9, 64, 96)
        assert sample.video.std() > 0.1 and sample.text.ids.shape == (1, 32) and sample.pooled_text.ids.shape == (1, 77)
        assert sample.caption in [caption.lower().rstrip(".") + "." * caption.endswith(".") for caption in
                                  dataset.clips[index].row.captions]  # fmt: skip
    missing = dataclasses.replace(config.dataset_param.tokenizer_config, from_pretrained=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="dataset_param.tokenizer_config.from_pretrained: folder"):
        build_dataset(dataclasses.replace(config.dataset_param, tokenizer_config=missing), global_batch_size=1, seed=0)

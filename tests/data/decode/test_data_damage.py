"""Damaged clips: a frame that is handed out is the frame of the undamaged file, or the clip is refused."""

import sys
from pathlib import Path

import av
import numpy as np
import pytest
from data_helpers import write_clip

from mindspeed_mm.data.decode.damage import Damage, listening, notice
from mindspeed_mm.data.decode.readers import build_reader, read_clip
from mindspeed_mm.errors import DataError

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))


def read(path, indices) -> np.ndarray:
    return read_clip(build_reader("decoder"), str(path), indices)


def packets(path) -> list[tuple[int, int, bool]]:
    """(place in the file, size, key frame) of the video packets."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]


def flip(path, packet: tuple[int, int, bool], count: int = 16) -> None:
    """Turn bytes in the middle of a packet into others."""
    data = bytearray(path.read_bytes())
    at = packet[0] + packet[1] // 2
    data[at : at + count] = bytes(255 - value for value in data[at : at + count])
    path.write_bytes(data)


@pytest.fixture
def clip(tmp_path) -> Path:
    """75 frames with key frames at 0, 25 and 50."""
    return write_clip(tmp_path / "clip.mp4", 75, codec="libx264", **{"x264-params": "keyint=25:bframes=2:scenecut=0"})


def assert_right_or_refused(path, whole, indices) -> bool:
    """True if the frames were given."""
    try:
        frames = read(path, indices)
    except DataError as error:
        assert str(path) in str(error)
        return False
    assert np.array_equal(frames, whole[list(indices)])
    return True


def refused(path, indices) -> bool:
    try:
        read(path, indices)
    except DataError:
        return True
    return False


def test_frames_behind_a_damaged_key_frame_are_refused_up_to_the_next_one(clip):
    whole = read(clip, range(75))
    keys = [packet for packet in packets(clip) if packet[2]]
    assert len(keys) == 3
    flip(clip, keys[1])
    assert read(clip, range(24)).shape[0] == 24  # in front of it
    for indices in ([30], range(26, 48, 2), range(40, 50), range(34, 75, 2), range(0, 75, 2)):
        with pytest.raises(DataError, match="damage"):
            read(clip, indices)
    assert assert_right_or_refused(clip, whole, range(52, 75, 2))  # behind the next


@pytest.mark.parametrize("number", [5, 13, 14])
def test_a_damaged_frame_that_resampling_skips_spoils_those_behind_it(clip, number):
    whole = read(clip, range(75))
    flip(clip, packets(clip)[number], 6)
    with pytest.raises(DataError, match="damage"):
        read(clip, range(75))
    for step in (2, 3, 5):
        for first in range(4):
            assert not assert_right_or_refused(clip, whole, range(first, 24, step))
    assert assert_right_or_refused(clip, whole, range(40, 75))


def test_damage_in_front_of_an_open_group_spoils_its_leading_frames(tmp_path):
    options = {"x264-params": "open-gop=1:keyint=24:min-keyint=24:bframes=3:b-adapt=0:scenecut=0"}
    path = write_clip(tmp_path / "open.mp4", 96, codec="libx264", **options)
    whole, found = read(path, range(96)), packets(path)
    key = [number for number, packet in enumerate(found) if packet[2]][2]
    with av.open(str(path)) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.size]
    shown = sorted(stamps).index(stamps[key])  # the number of the key frame in display order
    assert sorted(stamps).index(stamps[key + 1]) < shown  # frames behind it in the file are shown in front of it
    content, noticed = path.read_bytes(), 0
    for before in range(key - 12, key):  # not every damage can be noticed in frames of 100 bytes
        path.write_bytes(content)
        flip(path, found[before], found[before][1] // 3)
        last = sorted(stamps).index(stamps[before])
        if last >= shown - 3 or not refused(path, [last]):
            continue
        noticed += 1
        assert refused(path, [shown - 1])
        assert assert_right_or_refused(path, whole, range(shown, shown + 20))
    assert noticed


def test_frames_behind_damage_of_intra_refresh_do_not_count(tmp_path):
    options = {"x264-params": "intra-refresh=1:keyint=24:bframes=0"}
    path = write_clip(tmp_path / "refresh.mp4", 90, 128, 256, codec="libx264", **options)
    whole = read(path, range(90))
    flip(path, packets(path)[20], 8)
    assert assert_right_or_refused(path, whole, range(18))
    for indices in (range(0, 60, 3), [44], [60], [85]):
        assert_right_or_refused(path, whole, indices)


def test_frames_are_judged_in_the_order_of_decoding():
    damage = Damage()
    for packet in range(6):
        damage.sent(packet, key=packet in (0, 4))
    fine = {"corrupt": False, "counted": True}
    assert damage.fault(0, key=True, **fine) is None
    damage.found(1, "hole")
    assert damage.fault(2, key=False, **fine) == "hole" and damage.fault(1, key=False, **fine) == "hole"
    assert damage.fault(5, key=False, **fine) == "hole"  # leads the key frame: decoded behind it, shown in front
    assert damage.fault(3, key=False, **fine) == "hole"
    assert damage.fault(4, key=True, **fine) is None and damage.fault(6, key=False, **fine) is None
    assert damage.late is None


def test_a_frame_too_few_makes_later_numbers_unsure():
    damage = Damage()
    for packet in range(6):
        damage.sent(packet, key=packet in (0, 4))
    damage.fault(0, key=True, corrupt=False, counted=True)
    damage.found(1, "hole")
    damage.fault(2, key=False, corrupt=False, counted=True)  # 1 and 3 never come
    assert "missing" in damage.fault(4, key=True, corrupt=False, counted=True)
    assert damage.fault(5, key=False, corrupt=False, counted=False) is None  # numbered by its time stamp


def test_a_flag_that_comes_after_the_frames_that_need_it_is_late():
    damage = Damage()
    damage.fault(0, key=True, corrupt=False, counted=True)
    assert damage.fault(3, key=False, corrupt=False, counted=True) is None
    damage.fault(2, key=False, corrupt=True, counted=True)
    assert damage.late


def test_listening_leaves_the_log_as_it_was():
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    with listening() as outer, listening() as inner:
        for _ in range(2):
            av.logging.log(av.logging.ERROR, "h264", "error while decoding MB 3 4")
    assert len(inner) == 2 and not outer
    assert (av.logging.get_level(), av.logging.get_skip_repeated()) == before
    assert "MB 3 4" in notice(inner)
    assert (
        notice([(av.logging.INFO, "x264", "profile High"), (av.logging.ERROR, "h264", "SEI type 1 too long")]) is None
    )


def test_mutated_clips_of_many_codecs_are_right_or_refused_where_the_log_notices_it(tmp_path):
    import damage

    found = damage.run(tmp_path, 40, 1, codecs=("H.264", "MPEG-4", "VP9", "Theora"))
    counts = found["counts"]
    assert {name for counter in counts.values() for name in counter} <= {"refused", "right", "wrong, unnoticed"}, found
    assert all(counter.get("refused") for counter in counts.values())
    assert sum(counter.get("right", 0) for counter in counts.values()) > 5

"""The ledger's counts of samples that are not shown as they are stored."""

import json

from mindspeed_mm.data.feed.ledger import Ledger


def test_special_traits_are_counted_logged_and_kept(tmp_path, caplog):
    caplog.set_level("INFO")
    ledger = Ledger(tmp_path / "bad.json")
    for number in range(12):
        ledger.note([], 1, [("interlaced", f"{number}.mp4")])
    ledger.note([], 1, [("pixels of 2:1", "a.mp4")])
    ledger.sync()
    said = [line for line in caplog.messages if "samples so far" in line]
    assert [line.split(" samples")[0] for line in said] == ["data: 1", "data: 10", "data: 1"]
    assert "interlaced; one field is kept, the lines of the other are made from it (0.mp4)" in said[0]
    report = json.loads((tmp_path / "bad.json").read_text())["special"]
    assert report["pixels of 2:1; shown with square pixels"] == {"count": 1, "examples": ["a.mp4"]}
    again = Ledger()
    again.load_state_dict(ledger.state_dict())
    assert again.special == ledger.special and again.special["interlaced"].count == 12
    again.load_state_dict({"good": 3, "bad_samples": {}})  # of the first checkpoints
    assert again.special == {}

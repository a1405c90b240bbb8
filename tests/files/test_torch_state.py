"""Reading and writing files: whole or not there, and nothing in them is run."""

import argparse
import os
import pickle

import pytest
import torch

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import torch_state


class Trap:
    """Pickles to a call."""

    def __reduce__(self):
        return os.system, ("touch trapped",)


def test_a_saved_state_comes_back(tmp_path):
    state = {"w": torch.arange(4.0), "args": argparse.Namespace(lr=1.0, save=None), "n": [1, "a", None]}
    torch_state.save(state, tmp_path / "s.pt")
    found = torch_state.load(tmp_path / "s.pt")
    assert torch.equal(found["w"], state["w"])
    assert found["args"] == state["args"] and found["n"] == state["n"]
    assert [path.name for path in tmp_path.iterdir()] == ["s.pt"]


def test_the_old_format_without_checksums_is_refused_with_the_fix(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match="old.pt: is in the format of torch before 1.6.*save it again: (python .*)"
    ) as error:
        torch_state.load(tmp_path / "old.pt")
    _, _, code = str(error.value).partition('-c "')
    exec(code.removesuffix('"'))
    assert torch.equal(torch_state.load(tmp_path / "old.pt.new")["w"], torch.ones(2))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Trap()}, "trap.pt")
    with pytest.raises(CheckpointError, match="trap.pt: refused, it holds more than tensors"):
        torch_state.load(tmp_path / "trap.pt")
    with open("plain.pt", "wb") as file:
        pickle.dump(Trap(), file)
    with pytest.raises(CheckpointError, match="plain.pt: "):
        torch_state.load(tmp_path / "plain.pt")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_a_truncated_file_is_named(tmp_path, kept):
    torch_state.save({"w": torch.ones(1000)}, tmp_path / "s.pt")
    data = (tmp_path / "s.pt").read_bytes()
    (tmp_path / "s.pt").write_bytes(data[:kept])
    with pytest.raises(CheckpointError, match="s.pt: (cannot be read|refused)") as error:
        torch_state.load(tmp_path / "s.pt")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="none.pt: no such file"):
        torch_state.load(tmp_path / "none.pt")


def test_a_failing_write_leaves_the_old_file(tmp_path):
    torch_state.save({"w": torch.ones(2)}, tmp_path / "s.pt")
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        torch_state.save({"w": lambda: None}, tmp_path / "s.pt")
    assert torch.equal(torch_state.load(tmp_path / "s.pt")["w"], torch.ones(2))

"""`benchmarks/compare.py`: turns, figures and ratios."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import compare

_COUNTS = """
import pathlib
log = pathlib.Path({log!r})
log.write_text(log.read_text() + "{tree}\\n" if log.exists() else "{tree}\\n")
print("| | ms | note |\\n| --- | --- | --- |\\n| step | %d | fast |" % (10 * len(log.read_text().splitlines())))
"""


def test_the_trees_take_turns_after_one_that_warms_up(tmp_path):
    trees = (tmp_path / "a", tmp_path / "b")
    for tree in trees:
        tree.mkdir()
    log = tmp_path / "log"
    program = _COUNTS.replace("{log!r}", repr(str(log)))
    a, b = compare.take_turns([sys.executable, "-c", program], trees, turns=2)
    assert [Path(line).name for line in log.read_text().splitlines()] == ["a", "b", "b", "a", "a", "b"]
    assert [run["step, ms"] for run in a] == [40, 50]
    assert [run["step, ms"] for run in b] == [30, 60]
    assert all(run["processor seconds"] <= run["seconds"] * 2 for run in (*a, *b))


def test_the_ratio_is_of_turns_and_equal_figures_say_so():
    a = [{"ms": 10.0, "loss": 0.5}, {"ms": 100.0, "loss": 0.5}, {"ms": 10.0, "loss": 0.5}]
    b = [{"ms": 5.0, "loss": 0.5, "new": 1.0}, {"ms": 50.0, "loss": 0.5}, {"ms": 6.0, "loss": 0.5}]
    slow, loss = compare.rows(a, b)
    assert slow == ["ms", 10.0, "10 - 100", 6.0, "5 - 50", 0.5, "0.5 - 0.6"]
    assert loss == ["loss", 0.5, "", 0.5, "", "equal", ""]


def test_numbers_are_read_from_tables_alone():
    output = "seconds 3\n| | s | of dense |\n| --- | --- | --- |\n| SUV | 1.5 | - |\n\n| | MiB |\n| --- | --- |\n| SUV | 7 |\n"
    assert compare.numbers(output) == {"SUV, s": 1.5, "SUV, MiB": 7.0}


def test_a_commit_has_a_worktree_of_its_own_and_a_dot_is_this_one():
    with compare.worktree("HEAD") as tree:
        assert (tree / "benchmarks").is_dir() and tree != compare.ROOT
    assert not tree.exists()
    with compare.worktree(".") as tree:
        assert tree == compare.ROOT

"""Compares two commits by a command that runs in a worktree of each, in turns: for a machine that others use too.

python benchmarks/compare.py main HEAD -- python benchmarks/denoiser.py --stages 2 2 2 --sparsities 2 4 2
python benchmarks/compare.py main . --turns 9 -- python /path/to/this/benchmarks/small_step.py --tree {tree} --ranks 2 --tp 2

Compared are the command's seconds, its processor seconds (with its children's), and every number in the tables that it
prints. A disturbance meets both commits of a turn alike, so the ratio is the median of the turns' ratios.
"""

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from table import table

ROOT = Path(__file__).resolve().parents[1]
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("a", metavar="A", help="a commit, branch or tag; . is this working tree as it is")
    parser.add_argument("b", metavar="B", help="the other one")
    parser.add_argument(
        "--turns", type=int, default=5, metavar="N", help="number of runs of each, after one that warms up"
    )
    parser.add_argument("command", nargs="+", help="command to run; {tree} in it becomes the worktree's path")
    options = parser.parse_args()
    with worktree(options.a) as a, worktree(options.b) as b:
        found = take_turns(options.command, (a, b), options.turns)
    print(table(["", options.a, "from - to", options.b, "from - to", "ratio", "from - to"], rows(*found)))


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A folder with the files of a commit, removed afterwards; "." is this repository's own folder."""
    if commit == ".":
        yield ROOT
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def take_turns(command: Sequence[str], trees: tuple[Path, Path], turns: int) -> tuple[list[Figures], list[Figures]]:
    """Figures of each run in each tree. Every second turn begins with the second tree."""
    found: tuple[list[Figures], list[Figures]] = ([], [])
    for turn in range(turns + 1):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            figures = run([word.replace("{tree}", str(trees[which])) for word in command], trees[which])
            if turn:
                found[which].append(figures)
    return found


def run(command: list[str], tree: Path) -> Figures:
    """Figures of one run; its error output passes through, and a failure ends the comparison."""
    before, start = _processor_seconds(), time.perf_counter()
    done = subprocess.run(
        command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, text=True
    )
    seconds, processor = time.perf_counter() - start, _processor_seconds() - before
    if done.returncode:
        sys.exit(f"exit code {done.returncode} in {tree}: {' '.join(command)}\n{done.stdout}")
    return {"seconds": seconds, "processor seconds": processor, **numbers(done.stdout)}


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def numbers(output: str) -> Figures:
    """Numbers of the Markdown tables in an output, by "row, column"."""
    found, header = {}, None
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            header = None
        elif header is None:
            header = cells
        else:
            for column, cell in zip(header[1:], cells[1:], strict=False):
                with contextlib.suppress(ValueError):
                    found[f"{cells[0]}, {column}"] = float(cell)
    return found


def rows(a: list[Figures], b: list[Figures]) -> list[list[object]]:
    """For each figure: median and range of A, of B, and of B / A within each turn; "equal" if no run differs."""
    out: list[list[object]] = []
    for name in (name for name in a[0] if all(name in run for run in (*a, *b))):
        mine, theirs = [run[name] for run in a], [run[name] for run in b]
        if len({*mine, *theirs}) == 1:
            out.append([name, mine[0], "", theirs[0], "", "equal", ""])
            continue
        ratios = [new / old for old, new in zip(mine, theirs, strict=True) if old] or [float("nan")]
        spread = [(statistics.median(values), _range(values)) for values in (mine, theirs, ratios)]
        out.append([name, *(part for pair in spread for part in pair)])
    return out


def _range(values: list[float]) -> str:
    return f"{min(values):.3g} - {max(values):.3g}"


if __name__ == "__main__":
    main()

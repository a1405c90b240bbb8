"""Every pair of layout, flags, precision, checkpoint and encoders trains the numbers of the plain run on one rank.

    python benchmarks/layout_pairs.py [--only N ...]

The runs of `tests/training/pairs.py`: few steps of a small denoiser on gloo ranks of this machine. Each run is compared with
the plain one of its precision on one rank, and, bit for bit, with itself after a stop and a resume. Takes minutes: one
process per rank, and torch.compile.
"""

import argparse
import itertools
import logging
import sys
import tempfile
from pathlib import Path

from common import table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "training"))  # the runs are the tests' own

from pairs import RANKS, TOLERANCES, attempt, covering, every_pair, farthest, label, plain, reference, refusal
from ranks import close_pools, run_ranks


def verdict(case: dict, wanted: list[float]) -> tuple[float, str]:
    """Largest relative difference to the plain run, and what is wrong; "" for nothing."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = run_ranks(attempt, RANKS[case["layout"]], case, folder)
    except RuntimeError as error:
        return float("nan"), str(error).strip().splitlines()[-1]
    distance = max(farthest(losses, wanted) for losses, _, _ in found)
    faults = [] if distance <= TOLERANCES[case["precision"]] else ["other losses"]
    if any(resumed != losses[-len(resumed) :] for losses, resumed, _ in found):
        faults.append("other losses after the resume")
    different = sorted({name for _, _, names in found for name in names})
    return distance, "; ".join(faults + [f"{name} differ after the resume" for name in different])


def report(cases: list[dict], rows: list[list]) -> None:
    covered = {pair for case in cases for pair in itertools.combinations(case.items(), 2)}
    every = set(every_pair())
    unexplained = [pair for pair in every - covered if refusal(dict(pair)) is None]
    print(table(["run", "what", "farthest", "tolerance", "fault"], rows))
    print(f"\n{len(every)} pairs: {len(every & covered)} in {len(cases)} runs, {len(every - covered)} refused")
    for pair in sorted(every - covered, key=str):
        print(f"refused: {', '.join(f'{name} {value}' for name, value in pair)}: {refusal(dict(pair)) or 'WHY?'}")
    bad = sum(bool(row[-1]) for row in rows)
    print(f"{len(rows) - bad} of {len(rows)} runs equal; {bad} runs and {len(unexplained)} pairs unexplained")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers of runs")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    cases, references, rows = covering(), {}, []
    for number, case in enumerate(cases):
        if options.only is not None and number not in options.only:
            continue
        plainly = reference(case)
        key = label(plainly)
        if key not in references:
            references[key] = run_ranks(plain, 1, plainly)[0]
        distance, fault = verdict(case, references[key])
        rows.append([number, label(case), distance, TOLERANCES[case["precision"]], fault])
        print(f"{number}: {distance:.2e} {fault or 'equal'}", file=sys.stderr, flush=True)
    close_pools()
    report(cases, rows)


if __name__ == "__main__":
    main()

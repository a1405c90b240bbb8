"""Faults made on purpose: what README and docs/operations.md promise about the end of a run, and what is seen.

    python benchmarks/faults.py [--tries 20] [--only WORDS]

One table: fault, tries, what is promised, what was seen, and the longest time from the fault to the end. Runs of the
quickstart's tiny model on CPUs, two ranks unless it says otherwise. Exit code 0: every promise was kept each time.

The first try of each fault starts its processes as a user does; in the others they are forked from one that has imported
torch already, which saves most of the time (`fault_warm.py`). Slow faults have fewer tries.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import fault_warm
from fault_disks import Faults, disk_rows
from fault_kills import kill_rows
from fault_programs import OURS, flags, sampling
from fault_runs import COLD_TRIES, ROOT, Row, make_world
from fault_signals import signal_rows
from table import table

HEADER = ["fault", "tries", "promised", "seen", "longest s"]

ROWS: list[Callable[[], list[Row]]] = [signal_rows, kill_rows, lambda: disk_rows(Faults(OURS, flags, sampling))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20, metavar="N", help="tries of each fault (default 20)")
    parser.add_argument("--only", default="", metavar="WORDS", help="rows whose fault has these words")
    parser.add_argument("--world", type=Path, metavar="DIR", help="keep the runs here, for another call to go on with")
    parser.add_argument("--results", type=Path, metavar="FILE", help="a line a try; those in it are not done again")
    options = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored by a job in the background, and then by all it starts
    rows = [row for make in ROWS for row in make() if options.only.lower() in row.fault.lower()]
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults_")))
        world, results = options.world or temporary, options.results or temporary / "results"
        if options.tries and not (world / "features").exists():
            make_world(world)
        if options.tries > COLD_TRIES:
            sys.path.insert(0, str(ROOT))
            fault_warm.load()
        for row in rows:
            print(table(HEADER, [row.run(world, options.tries, results)]).splitlines()[-1], flush=True)
        cells = [row.cells(results) for row in rows]
    print("\n" + table(HEADER, cells))
    return 0 if all(f"{row[1]} of {row[1]} " in row[3] for row in cells) else 1


if __name__ == "__main__":
    sys.exit(main())

"""`mindspeed-mm plot`: the curves of runs, from their metrics.jsonl."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from mindspeed_mm.errors import DataError, said_in_one_line
from mindspeed_mm.publishing.curves import Run, draw
from mindspeed_mm.schema import Program, flag


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlotFlags:
    runs: tuple[str, ...] = flag((), "runs", metavar="RUN", help="--save directory of a run, or a metrics.jsonl")
    save: str | None = flag(
        None,
        "--save",
        published=("--output",),
        metavar="FILE",
        help="PNG, PDF or SVG; default: run.png in the first RUN",
    )
    smooth: float = flag(0.9, "--smooth", at_least=0, below=1, help="weight of the moving average's past, 0 for none")
    log_loss: bool = flag(False, "--log-loss", help="loss on a logarithmic axis")


PROGRAMS = {
    "plot": Program(
        flags=PlotFlags,
        description="Draw training runs: loss, gradient norm with its clip limit, learning rate, throughput.",
        remarks="Several runs are drawn into one picture. Where a run was resumed from before its end, the later numbers of "
        "an iteration count.",
        examples=("mindspeed-mm plot run1", "mindspeed-mm plot run1 run2 --save both.png --log-loss"),
    )
}


def plot(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm plot` and tools/plot_run.py."""
    with said_in_one_line():
        flags = PROGRAMS["plot"].parse(sys.argv[1:] if argv is None else argv, prog).values
        first = Path(flags.runs[0])
        file = Path(flags.save) if flags.save else (first if first.is_dir() else first.parent) / "run.png"
        runs = [Run(Path(path)) for path in flags.runs]
        try:
            draw(runs, flags.smooth, flags.log_loss, file)
        except (OSError, ValueError) as error:  # no room; a kind of file that matplotlib does not write
            raise DataError(f"--save {file}: {error}") from None
        print(file)

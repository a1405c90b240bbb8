"""`mindspeed-mm check-data`: what a run would make of a list."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mindspeed_mm import atomic
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.data_dialects import data_node
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.schema import Program, build, flag, read_json


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CheckFlags:
    mm_data: str = flag("", "--mm-data", required=True, metavar="JSON", help="data.json: lists, filters, transforms")
    global_batch_size: int = flag(1, "--global-batch-size", at_least=1, help="global batch size of the run")
    clips: int = flag(32, "--clips", published=("--samples",), at_least=0, help="clips to decode")
    seed: int = flag(0, "--seed", at_least=0, at_most=2**63 - 1, help="seed of the choice of clips")
    num_workers: int = flag(2, "--num-workers", at_least=0, at_most=1024, help="decoding processes")
    probe: bool = flag(False, "--probe", help="read facts that the lists omit from the files")
    max_dropped_fraction: float = flag(
        1.0,
        "--max-dropped-fraction",
        at_least=0,
        at_most=1,
        help="largest share of dropped rows; above it the exit code is 1",
    )
    max_empty_captions: float = flag(
        0.5,
        "--max-empty-captions",
        metavar="FRACTION",
        at_least=0,
        at_most=1,
        help="largest share of captions that cleaning empties; above it the exit code is 1",
    )
    checksums: bool = flag(False, "--checksums", help="compare the checksums of all files, and write them to --save")
    save: str | None = flag(
        None,
        "--save",
        published=("--output",),
        metavar="DIR",
        help="write check.json, shapes.png and samples.png to this folder; default: write nothing",
    )


PROGRAMS = {
    "check-data": Program(
        flags=CheckFlags,
        description="Look at a list before training on it: what is dropped and why, which shapes are left, whether files "
        "can be decoded.",
        remarks="Exit code 0: fit for a run; 1: something is wrong (an error in the config or list, a sample that cannot be "
        "decoded, more dropped than --max-dropped-fraction, or more captions that cleaning empties than "
        "--max-empty-captions).",
        examples=(
            "mindspeed-mm check-data --mm-data data.json --global-batch-size 64 \\\n      --clips 100 --save check",
        ),
    )
}


def check_data(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm check-data` and tools/check_dataset.py."""
    with said_in_one_line():
        flags = PROGRAMS["check-data"].parse(sys.argv[1:] if argv is None else argv, prog).values
        is_fit = _check(flags, build(DataConfig, data_node(read_json(flags.mm_data))))
    sys.exit(0 if is_fit else 1)


def _check(flags: CheckFlags, config: DataConfig) -> bool:
    """Prints what was found; True if nothing is wrong."""
    from mindspeed_mm.data.check.lists import check_list, draw_shapes  # imports torch, which --help does not need

    found = check_list(
        config,
        global_batch_size=flags.global_batch_size,
        samples=flags.clips,
        seed=flags.seed,
        processes=flags.num_workers,
        probe_files=flags.probe,
    )
    print("\n".join(found.lines()))
    folder = None if flags.save is None else Path(flags.save)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder / "check.json", json.dumps(found.report(), indent=1, ensure_ascii=False))
        draw_shapes(found.result, folder / "shapes.png")
        found.draw(folder / "samples.png")
        print(f"wrote {folder / 'check.json'}, shapes.png and samples.png")
    wrong = _check_sums(config, folder) if flags.checksums else ()
    too_many = found.dropped_fraction > flags.max_dropped_fraction
    if too_many:
        print(f"error: {found.dropped_fraction:.1%} of the rows are dropped, more than --max-dropped-fraction allows")
    emptied = found.emptied.fault(flags.max_empty_captions)
    if emptied is not None:
        print(f"error: {emptied}")
    return not (found.faults or found.different or wrong or too_many or emptied is not None)


def _check_sums(config: DataConfig, folder: Path | None) -> tuple[str, ...]:
    """Compares the files of the list with their checksums; the lines about those that differ."""
    from mindspeed_mm.data.check import checksums
    from mindspeed_mm.data.lists.sources import read_list

    rows = read_list(config.dataset_param.basic_parameters.data_path)
    sums = checksums.compare(rows)
    print(
        f"data: {len(sums.sums)} files were read; {sums.verified} are as their checksums say, {len(sums.wrong)} are not"
    )
    print("".join(f"data: {line}\n" for line in sums.wrong), end="")
    if folder is not None:
        checksums.write_list(rows, sums, folder / "checksums.jsonl")
        print(f"wrote {folder / 'checksums.jsonl'}: the list with checksums; name it in data_path")
    return sums.wrong

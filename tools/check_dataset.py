#!/usr/bin/env python
"""Look at a list before training on it: what is dropped and why, which shapes are left, whether files can be decoded.

    python tools/check_dataset.py --mm-data data.json --global-batch-size 64

Exit code 0: fit for a run; 1: something is wrong (an error in the config or list, a sample that cannot be decoded, more
dropped than --max-dropped-fraction, or more captions that cleaning empties than --max-empty-captions).
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm import atomic
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.data_dialects import data_node
from mindspeed_mm.data.check import checksums
from mindspeed_mm.data.check.lists import check_list, draw_shapes
from mindspeed_mm.data.lists.sources import read_list
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.schema import build, read_json


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mm-data", required=True, metavar="JSON")
    parser.add_argument(
        "--global-batch-size", type=int, default=1, metavar="N", help="global batch size of the run (default 1)"
    )
    parser.add_argument("--samples", type=int, default=32, metavar="N", help="clips to decode (default 32)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the choice of clips (default 0)")
    parser.add_argument("--num-workers", type=int, default=2, metavar="N", help="decoding processes (default 2)")
    parser.add_argument("--probe", action="store_true", help="read facts that the lists omit from the files")
    parser.add_argument(
        "--max-dropped-fraction",
        type=float,
        default=1.0,
        metavar="X",
        help="largest share of dropped rows; above it the exit code is 1 (default 1)",
    )
    parser.add_argument(
        "--max-empty-captions",
        type=float,
        default=0.5,
        metavar="FRACTION",
        help="largest share of captions that cleaning empties; above it the exit code is 1",
    )
    parser.add_argument(
        "--checksums", action="store_true", help="compare the checksums of all files, and write them to --output"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write check.json, shapes.png and samples.png to this folder"
    )
    options = parser.parse_args()
    with said_in_one_line():
        found = check_list(
            build(DataConfig, data_node(read_json(options.mm_data))),
            global_batch_size=options.global_batch_size,
            samples=options.samples,
            seed=options.seed,
            processes=options.num_workers,
            probe_files=options.probe,
        )
    print("\n".join(found.lines()))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        atomic.write_text(options.output / "check.json", json.dumps(found.report(), indent=1, ensure_ascii=False))
        draw_shapes(found.result, options.output / "shapes.png")
        found.draw(options.output / "samples.png")
        print(f"wrote {options.output / 'check.json'}, shapes.png and samples.png")
    wrong = check_sums(options) if options.checksums else ()
    too_many = found.dropped_fraction > options.max_dropped_fraction
    if too_many:
        print(f"error: {found.dropped_fraction:.1%} of the rows are dropped, more than --max-dropped-fraction allows")
    emptied = found.emptied.fault(options.max_empty_captions)
    if emptied is not None:
        print(f"error: {emptied}")
    return int(bool(found.faults or found.different or wrong) or too_many or emptied is not None)


def check_sums(options) -> tuple[str, ...]:
    """Compare the files of the list with their checksums; the lines about those that differ."""
    with said_in_one_line():
        rows = read_list(
            build(DataConfig, data_node(read_json(options.mm_data))).dataset_param.basic_parameters.data_path
        )
    sums = checksums.compare(rows)
    print(
        f"data: {len(sums.sums)} files were read; {sums.verified} are as their checksums say, {len(sums.wrong)} are not"
    )
    print("".join(f"data: {line}\n" for line in sums.wrong), end="")
    if options.output is not None:
        checksums.write_list(rows, sums, options.output / "checksums.jsonl")
        print(f"wrote {options.output / 'checksums.jsonl'}: the list with checksums; name it in data_path")
    return sums.wrong


if __name__ == "__main__":
    sys.exit(main())

"""Split weights over tensor-parallel ranks: a Megatron directory that a run can start from, in either dialect.

python tools/convert_ckpt_to_mm.py --load model.pt --save_dir OUT --tensor-model-parallel-size 8 [--dialect mm]
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm import families, logs
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.schema import flag, parse


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    load: str = flag(
        "",
        "--load",
        required=True,
        metavar="PATH",
        help="merged .pt or .safetensors file, index of several, folder of them, or a Megatron directory of any TP size",
    )
    save_dir: str = flag(
        "",
        "--save_dir",
        required=True,
        metavar="DIR",
        help="folder for iter_XXXXXXX (release, if the source has no iteration) and the tracker",
    )
    tensor_size: int = flag(
        1,
        "--tensor-model-parallel-size",
        required=True,
        at_least=1,
        at_most=2**16,
        help="number of ranks to split over",
    )
    dialect: str = flag(
        "osp",
        "--dialect",
        choices=[dialect.name.lower() for family in families.DENOISERS.values() for dialect in family.dialects],
        help="names of parameters: Open-Sora Plan's, which this project uses too, or MindSpeed-MM 26.0.0's",
    )
    text_tail: str = flag(
        "keep",
        "--text-tail",
        choices=("keep", "drop", "write"),
        help="tensors of the last block that Open-Sora Plan's own code wants at TP > 1 and never uses: as the source has "
        "them, none, or always. MindSpeed-MM has none",
    )
    dtype: str | None = flag(
        None, "--dtype", choices=("fp32", "bf16", "fp16"), help="dtype of the result; default: as the source"
    )
    dry_run: bool = flag(False, "--dry-run", help="print what would be written, and write nothing")


def main() -> None:
    logs.setup()
    with said_in_one_line():
        flags = parse(
            Flags,
            sys.argv[1:],
            description=__doc__.splitlines()[0],
            epilog="EMA weights are split as well if the source has both. Another TP size than a run was trained with is "
            "reached directly, without a merged file in between.",
        ).values
        from mindspeed_mm.weights import split_checkpoint  # imports torch, which --help does not need

        path = split_checkpoint(
            flags.load,
            flags.save_dir,
            flags.tensor_size,
            dialect=flags.dialect.upper(),
            text_tail=flags.text_tail,
            dtype=flags.dtype,
            dry_run=flags.dry_run,
        )
        print(path)


if __name__ == "__main__":
    main()

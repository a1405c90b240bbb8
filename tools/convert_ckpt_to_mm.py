"""Split weights over tensor-parallel ranks: a Megatron directory that a run can start from, in either dialect.

python tools/convert_ckpt_to_mm.py --load model.pt --save_dir OUT --tensor-model-parallel-size 8 [--dialect mm]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm import logs
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.weights import split_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="EMA weights are split as well if the source has both. Another TP size than a run was trained with is "
        "reached directly, without a merged file in between.",
    )
    parser.add_argument(
        "--load",
        required=True,
        help="merged .pt or .safetensors file, index of several, folder of them, or a Megatron directory of any TP size",
    )
    parser.add_argument(
        "--save_dir", required=True, help="gets iter_XXXXXXX (release, if the source has no iteration) and the tracker"
    )
    parser.add_argument(
        "--tensor-model-parallel-size", type=int, required=True, metavar="N", help="ranks to split over"
    )
    parser.add_argument(
        "--dialect",
        default="osp",
        choices=("osp", "mm"),
        help="names of parameters: Open-Sora Plan's (default), which this project uses too, or MindSpeed-MM 26.0.0's",
    )
    parser.add_argument(
        "--text-tail",
        default="keep",
        choices=("keep", "drop", "write"),
        help="tensors of the last block that Open-Sora Plan's own code wants at TP > 1 and never uses: as the source "
        "has them (default), none, or always. MindSpeed-MM has none",
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the result; default: as the source")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, and write nothing")
    options = parser.parse_args()
    logs.setup()
    with said_in_one_line():
        path = split_checkpoint(
            options.load,
            options.save_dir,
            options.tensor_model_parallel_size,
            dialect=options.dialect.upper(),
            text_tail=options.text_tail,
            dtype=options.dtype,
            dry_run=options.dry_run,
        )
        print(path)


if __name__ == "__main__":
    main()

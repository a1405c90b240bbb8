"""Convert the weights of a WFVAE, such as the published .ckpt, to one flat .safetensors (or .pt) file.

python tools/convert_vae.py --load merged.ckpt --save vae.safetensors
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm import logs
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.schema import flag, parse


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    load: str = flag(
        "", "--load", required=True, metavar="PATH", help="a .ckpt, .pt or .safetensors file, or a folder with one"
    )
    save: str = flag(
        "", "--save", required=True, metavar="FILE", help="file to write; it ends in .safetensors, or in .pt"
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
            epilog="Taken are the EMA weights (`ema_state_dict`) if the file has any, else `state_dict`, and `gen_model` "
            "in it. NOT_USE_EMA_MODEL=1 in the environment takes the live weights.",
        ).values
        from mindspeed_mm.weights import convert_autoencoder  # imports torch, which --help does not need

        print(convert_autoencoder(flags.load, flags.save, dtype=flags.dtype, dry_run=flags.dry_run))


if __name__ == "__main__":
    main()

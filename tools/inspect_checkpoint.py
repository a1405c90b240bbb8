"""Say what a checkpoint holds: kind, dialect, TP size, iteration, EMA, dtypes, norms, and how it fits a config.

python tools/inspect_checkpoint.py RUN [--mm-model model_opensoraplan1_5.json]
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm import families
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.schema import flag, parse


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    path: str = flag(
        "",
        "path",
        metavar="PATH",
        help="Megatron directory, merged .pt or .safetensors file, index, WFVAE .ckpt, or a folder with one",
    )
    mm_model: str | None = flag(
        None, "--mm-model", metavar="JSON", help="model or inference JSON: list what does not fit its network"
    )
    block: str = flag(
        "predictor",
        "--block",
        choices=("predictor", "ae"),
        help="block of the JSON to compare: the denoiser or the autoencoder",
    )
    norms: bool = flag(True, "--no-norms", help="read names and shapes only, which takes a second")


def main() -> None:
    with said_in_one_line():
        flags = parse(Flags, sys.argv[1:], description=__doc__.splitlines()[0]).values
        from mindspeed_mm.weights import describe  # imports torch, which --help does not need

        config = None if flags.mm_model is None else families.read_file(flags.mm_model, flags.block)
        for line in describe(flags.path, config, norms=flags.norms):
            print(line)


if __name__ == "__main__":
    main()

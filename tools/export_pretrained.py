"""Write all parts for sampling to one folder, laid out as on the Hugging Face hub:
T2VPipeline.from_pretrained(FOLDER).

python tools/export_pretrained.py --mm-model inference_t2v_model1_5.json --save_dir FOLDER [--load RUN --ema]
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm import logs
from mindspeed_mm.config.model_dialects import sample_node
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.schema import build, flag, parse, read_json


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    mm_model: str = flag(
        "", "--mm-model", required=True, metavar="JSON", help="inference JSON: configs, and where the weights are"
    )
    save_dir: str = flag(
        "", "--save_dir", required=True, metavar="DIR", help="folder to write; it must not hold a config.json yet"
    )
    load: str | None = flag(
        None, "--load", metavar="DIR", help="a run's directory, instead of predictor.from_pretrained"
    )
    ema: bool = flag(False, "--ema", help="use the EMA weights of --load")
    dtype: str | None = flag(
        None, "--dtype", choices=("fp32", "bf16", "fp16"), help="dtype of the denoiser; default: as the source"
    )
    max_shard_gb: float = flag(
        5.0, "--max-shard-gb", at_least=1e-3, at_most=1e6, unit="GB", help="largest size of a weight file"
    )
    copy_encoders: bool = flag(False, "--copy-encoders", help="copy the text encoders' folders into it as well")
    dry_run: bool = flag(False, "--dry-run", help="print what would be written, and write nothing")


def main() -> None:
    logs.setup()
    with said_in_one_line():
        flags = parse(Flags, sys.argv[1:], description=__doc__.splitlines()[0]).values
        from mindspeed_mm.weights import folder  # imports torch, which --help does not need

        path = folder.from_config(
            build(SampleModelConfig, sample_node(read_json(flags.mm_model))),
            flags.save_dir,
            load=flags.load,
            ema=flags.ema,
            dtype=flags.dtype,
            largest=int(flags.max_shard_gb * 1e9),
            copy_encoders=flags.copy_encoders,
            dry_run=flags.dry_run,
        )
        print(path)


if __name__ == "__main__":
    main()

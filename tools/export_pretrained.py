"""Put all that sampling needs into one folder, laid out as on the Hugging Face hub: T2VPipeline.from_pretrained(FOLDER).

python tools/export_pretrained.py --mm-model inference_t2v_model1_5.json --save_dir FOLDER [--load RUN --ema]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm import logs
from mindspeed_mm.config.model_dialects import sample_node
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.schema import build, read_json
from mindspeed_mm.weights import folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--mm-model", required=True, metavar="JSON", help="inference JSON: configs, and where the weights are"
    )
    parser.add_argument("--save_dir", required=True, help="folder to write; it must not hold a config.json yet")
    parser.add_argument("--load", metavar="DIR", help="a run's directory, instead of predictor.from_pretrained")
    parser.add_argument("--ema", action="store_true", help="the EMA weights of it")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the denoiser; default: as the source")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, metavar="GB", help="per file (default 5)")
    parser.add_argument("--copy-encoders", action="store_true", help="copy the text encoders' folders into it as well")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, and write nothing")
    options = parser.parse_args()
    logs.setup()
    with said_in_one_line():
        path = folder.from_config(
            build(SampleModelConfig, sample_node(read_json(options.mm_model))),
            options.save_dir,
            load=options.load,
            ema=options.ema,
            dtype=options.dtype,
            largest=int(options.max_shard_gb * 1e9),
            copy_encoders=options.copy_encoders,
            dry_run=options.dry_run,
        )
        print(path)


if __name__ == "__main__":
    main()

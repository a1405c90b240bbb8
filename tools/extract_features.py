#!/usr/bin/env python
"""Encode a list once, so that training needs neither the autoencoder nor the text encoders.

Takes the flags of the training run (--mm-data, --mm-model, --bf16 or --model_custom_precision, --num-workers, --probe,
--eval-data ...), so that features come out as that run would make them; flags of the optimizer may be left out. The
features go to feature_folder of the data JSON. Runs in one process or under torchrun with any number; stopped, it goes on
where it ended. Then train with load_video_features and load_text_features true in the model JSON.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing it

from mindspeed_mm import launch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", choices=("video", "text"), help="one of the two parts; default: both")
    options, flags = parser.parse_known_args()
    # what a training run must say and features do not depend on; what is given comes later and counts
    flags = ["--train-iters", "1", "--lr", "1e-5", *flags]
    launch.extract_features(flags, videos=options.only != "text", texts=options.only != "video")


if __name__ == "__main__":
    main()

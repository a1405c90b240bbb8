"""`mindspeed-mm config init`: a folder with the published configs and scripts, with the user's paths in them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from mindspeed_mm.cli import published
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import Program, flag

MODEL, SAMPLE = "model_opensoraplan1_5.json", "inference_t2v_model1_5.json"
DATA, TOOL, LIST, PROMPTS = "data.json", "tools.json", "data.txt", "sora.txt"
_PRETRAINED = "/path/to/checkpoint/pretrained"
# What the published files say -> the field of `InitFlags` that replaces it.
_PLACES = {
    f"{_PRETRAINED}/vae/Middle888/merged.ckpt": "vae",
    f"{_PRETRAINED}/t5/t5-v1_1-xl": "t5",
    f"{_PRETRAINED}/clip/models--laion--CLIP-ViT-bigG-14-laion2B-39B-b160k/snapshots/bc7788f151930d91b58474715fdce5524ad9a189": "clip",
    "/path/to/pretrained/model": "denoiser",
    "./opensoraplan_samples/test_samples": "samples",
}
_TRAIN = """\
#!/usr/bin/env bash
# Train Open-Sora Plan v1.5 with the files of this folder; goes on from checkpoints/ if there is one. NPROC: devices here.
# Further flags go behind: bash train.sh --train-iters 5000 (mindspeed-mm train --help lists them).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
exec mindspeed-mm train --nproc "${NPROC:-8}" \\
    --mm-model model_opensoraplan1_5.json --mm-data data.json --mm-tool tools.json --model_custom_precision \\
    --optimizer-selection fused_ema_adamw --use-ema --use-distributed-optimizer --accumulate-allreduce-grads-in-fp32 \\
    --lr 1e-5 --lr-decay-style constant --adam-eps 1e-15 --weight-decay 1e-4 --clip_grad_ema_decay 0.99 \\
    --selective_recom --recom_ffn_layers 32 \\
    --save checkpoints --load checkpoints --log-interval 1 --train-iters 100000000 "$@"
"""
_SAMPLE = """\
#!/usr/bin/env bash
# Sample videos with the files of this folder. NPROC: devices here. Further flags go behind: bash sample.sh --prompt "a tram"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
exec mindspeed-mm sample --nproc "${NPROC:-1}" --mm-model inference_t2v_model1_5.json "$@"
"""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class InitFlags:
    folder: str = flag("", "folder", metavar="DIR", help="folder to write; files of these names must not be in it")
    videos: str = flag("path/to/videos", "--videos", metavar="DIR", help="folder of the clips, for data.txt")
    annotations: str = flag(
        "path/to/annotations.json", "--annotations", metavar="FILE", help="list of the clips, for data.txt"
    )
    vae: str | None = flag(None, "--vae", metavar="FILE", help="weights of the WFVAE; default: the published path")
    t5: str | None = flag(None, "--t5", metavar="DIR", help="folder of the T5 encoder; default: the published path")
    clip: str | None = flag(
        None, "--clip", metavar="DIR", help="folder of the CLIP encoder; default: the published path"
    )
    denoiser: str | None = flag(
        None,
        "--denoiser",
        metavar="PATH",
        help="weights of the denoiser, to sample with; default: the published path",
    )
    samples: str = flag("samples", "--save", metavar="DIR", help="output folder of sampling, for the inference JSON")


INIT = Program(
    flags=InitFlags,
    description="Write the published configs, a data.txt and two scripts into a folder, with your paths in them.",
    remarks="Comments of the published files are kept. Paths are written as they are given: relative ones count from where "
    "a program is started, which for the two scripts is their folder.",
    examples=(
        "mindspeed-mm config init run1 --videos /data/clips \\\n"
        "      --annotations /data/clips.json --vae /weights/merged.ckpt \\\n"
        "      --t5 /weights/t5-v1_1-xl --clip /weights/clip",
    ),
)


def write(flags: InitFlags) -> list[Path]:
    """Writes the folder; returns its files. Raises ConfigError if one of them is there already."""
    folder = Path(flags.folder)
    replaced = {place: getattr(flags, name) for place, name in _PLACES.items()}
    replaced |= {"./examples/opensoraplan1.5/data.txt": LIST, "./examples/opensoraplan1.5/sora.txt": PROMPTS}
    files = {name: _with_paths(published.text(name), replaced) for name in (MODEL, DATA, SAMPLE, TOOL)}
    files |= {
        LIST: f"{flags.videos},{flags.annotations}\n",
        PROMPTS: published.text(PROMPTS),
        "train.sh": _TRAIN,
        "sample.sh": _SAMPLE,
    }
    there = [name for name in files if (folder / name).exists()]
    if there:
        raise ConfigError(f"{folder / there[0]}: is there already; give another folder, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from None
    return [folder / name for name in files]


def _with_paths(content: str, replaced: Mapping[str, str | None]) -> str:
    """A published file with other paths; None keeps the published one."""
    for place, path in replaced.items():
        if path is not None:
            content = content.replace(json.dumps(place), json.dumps(path, ensure_ascii=False))
    return content

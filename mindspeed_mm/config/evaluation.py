"""Config of an evaluation: the flags of `mindspeed-mm evaluate`."""

import dataclasses
import os
from collections.abc import Sequence

from mindspeed_mm.config import arguments, hub, resolve
from mindspeed_mm.config.launch import LaunchConfig, RanksConfig
from mindspeed_mm.config.run import RunConfig
from mindspeed_mm.schema import Program, flag, group

_VIDEOS, _LOSS = "finished videos", "held-out loss"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VideoFlags:
    """What is measured of finished videos."""

    folder: str | None = flag(
        None,
        "--videos",
        metavar="DIR",
        help="videos to measure: a folder that `sample` wrote, or any folder of videos",
    )
    against: str | None = flag(
        None, "--against", metavar="DIR", help="measure these videos too, and write a page with both side by side"
    )
    prompts: str | None = flag(
        None, "--prompts", metavar="FILE", help="prompts in the order of the videos, for folders without records"
    )
    clip: str | None = flag(
        None,
        "--clip",
        metavar="DIR",
        help="Hugging Face folder, or repository (org/name), of a whole CLIP: adds CLIP score and CLIP consistency; text "
        "encoders alone do not do",
    )
    reference: str | None = flag(
        None, "--reference", metavar="DIR", help="real videos for FVD, at any depth of this folder"
    )
    fvd_extractor: str | None = flag(
        None, "--fvd-extractor", metavar="FILE", help="TorchScript file that turns videos into features: adds FVD"
    )
    fvd_frames: int = flag(16, "--fvd-frames", at_least=1, at_most=1000, help="first frames of a video that FVD sees")
    fvd_size: int | None = flag(
        None,
        "--fvd-size",
        at_least=1,
        at_most=4096,
        unit="pixels",
        help="resize frames to this square before the extractor; default: leave them",
    )
    judge: str | None = flag(
        None,
        "--judge",
        metavar="PLACE",
        help="module:function or file.py:function that judges a video by its prompt; its code is run",
    )
    shuffled: int = flag(
        20,
        "--shuffled",
        at_least=0,
        at_most=10_000,
        help="how often the judge is asked with shuffled prompts, for the score of chance",
    )
    vbench: bool = flag(False, "--vbench", help="also write VBench's file layout, to SAVE/vbench")

    def problems(self):
        for name in ("folder", "against", "clip", "reference"):
            folder = getattr(self, name)
            is_hub = name == "clip" and folder is not None and hub.is_repository(folder)
            if folder is not None and not os.path.isdir(folder) and not is_hub:
                yield name, f"{folder}: no such directory"
        for name in ("prompts", "fvd_extractor"):
            file = getattr(self, name)
            if file is not None and not os.path.isfile(file):
                yield name, f"{file}: no such file"
        if (self.reference is None) != (self.fvd_extractor is None):
            yield "fvd_extractor", "FVD needs both --fvd-extractor and --reference"
        if self.folder is None:
            for name in ("against", "prompts", "clip", "fvd_extractor", "judge", "vbench"):
                if getattr(self, name):
                    yield name, "only with --videos, which names the videos"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LossFlags:
    """What is needed for the loss on held-out clips."""

    mm_model: str | None = flag(
        None, "--mm-model", metavar="JSON", help="model JSON of the run, in whose precision the loss is computed"
    )
    mm_data: str | None = flag(
        None, "--mm-data", metavar="JSON", help="data JSON of the run: its transforms and loader"
    )
    data_path: str | None = flag(
        None, "--eval-data", metavar="PATH", help="held-out clips, as data_path of the data JSON; default: its own list"
    )
    iterations: int = flag(10, "--eval-iters", at_least=1, help="micro-batches on each data rank")
    micro_batch_size: int = flag(1, "--micro-batch-size", at_least=1, help="samples that a rank handles at a time")
    load: str | None = flag(
        None, "--load", metavar="DIR", help="checkpoints of a run, instead of predictor.from_pretrained"
    )
    use_ema: bool = flag(False, "--ema", help="the EMA weights of --load")

    def problems(self):
        if (self.mm_model is None) != (self.mm_data is None):
            yield "mm_model", "the held-out loss needs both --mm-model and --mm-data"
        for name in ("mm_model", "mm_data", "data_path", "load"):
            file = getattr(self, name)
            is_hub = name == "load" and file is not None and hub.is_repository(file)
            if file is not None and not os.path.exists(file) and not is_hub:
                yield name, f"{file}: no such file or directory"
        if self.mm_model is None:
            for name in ("data_path", "load", "use_ema"):
                if getattr(self, name):
                    yield name, "only with --mm-model and --mm-data, for the held-out loss"
        if self.use_ema and self.load is None:
            yield "use_ema", "only with --load; merged EMA weights are named by predictor.from_pretrained"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateFlags:
    """The flags of `mindspeed-mm evaluate`."""

    videos: VideoFlags = group(VideoFlags, _VIDEOS)
    loss: LossFlags = group(LossFlags, _LOSS)
    save: str | None = flag(
        None, "--save", metavar="DIR", help="write evaluation.json and pages here; default: `evaluation` in --videos"
    )
    as_json: bool = flag(False, "--json", help="print the results as JSON, and the progress to stderr")
    seed: int = flag(1234, "--seed", at_least=0, at_most=2**63 - 1, help="seed of noise levels, noise and shuffles")
    launch: LaunchConfig = group(LaunchConfig, "device and layout", without=("guidance_parallel",))
    ranks: RanksConfig = group(RanksConfig, "starting processes")

    def problems(self):
        if self.videos.folder is None and self.loss.mm_model is None:
            yield "videos", "nothing to evaluate: give --videos DIR, or --mm-model and --mm-data, or all of them"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(EvaluateFlags):
    """All settings of an evaluation. run: whose held-out loss is computed; None: no loss."""

    run: RunConfig | None


EVALUATE = Program(
    flags=EvaluateFlags,
    description="Measure finished videos and weights: frame consistency, motion, CLIP score, FVD, a judge of yours, and the loss "
    "on held-out clips by noise level.",
    remarks="Without further files videos get frame consistency, flicker and motion. CLIP score and FVD need weights that you "
    "give, as files or a hub's repository. Every figure and its definition: docs/evaluation.md. With several processes the loss is "
    "shared over them; the first one measures the videos.",
    examples=(
        "mindspeed-mm evaluate --videos out",
        "mindspeed-mm evaluate --videos out --against other --judge judge.py:judge",
        "mindspeed-mm evaluate --videos out --reference clips \\\n      --fvd-extractor i3d_torchscript.pt --json",
        "mindspeed-mm evaluate --mm-model model.json --mm-data data.json \\\n      --eval-data held_out.txt --load run1 --ema",
    ),
)


def evaluate_config(argv: Sequence[str], world_size: int | None = None, prog: str | None = None) -> EvaluateConfig:
    """An evaluation from the flags of `mindspeed-mm evaluate`. world_size: default torchrun's $WORLD_SIZE."""
    flags = EVALUATE.parse(argv, prog).values
    videos, loss = flags.videos, flags.loss
    flags = dataclasses.replace(
        flags,
        videos=dataclasses.replace(videos, clip=videos.clip and hub.local(videos.clip)),
        loss=dataclasses.replace(loss, load=loss.load and hub.local(loss.load)),
    )
    values = {field.name: getattr(flags, field.name) for field in dataclasses.fields(EvaluateFlags)}
    return EvaluateConfig(**values, run=_run(flags, world_size))


def _run(flags: EvaluateFlags, world_size: int | None) -> RunConfig | None:
    """The training run whose loss is computed; clips and captions are encoded anew, since features of a held-out list
    are rarely stored.
    """
    loss = flags.loss
    if loss.mm_model is None or loss.mm_data is None:
        return None
    words = ["--mm-model", loss.mm_model, "--mm-data", loss.mm_data, "--model_custom_precision"]
    words += ["--lr", "1", "--train-iters", "1", "--seed", str(flags.seed)]
    words += ["--micro-batch-size", str(loss.micro_batch_size), "--eval-iters", str(loss.iterations)]
    words += ["--eval-data", loss.data_path] if loss.data_path is not None else []
    given = arguments.TRAIN.parse(words)
    given = dataclasses.replace(given, values=dataclasses.replace(given.values, launch=flags.launch))
    return resolve.encoding_run(given, world_size)

"""Programs with ranks that learn or feed: train, extract, train-vae, eval-vae."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mindspeed_mm import atomic, launch, logs
from mindspeed_mm.cli.ranks import at_once, run_here, run_on_ranks, stoppable
from mindspeed_mm.config import arguments, autoencoder, hub, resolve
from mindspeed_mm.config.run import RunConfig, TrainingFlags
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.families import wfvae
from mindspeed_mm.stopping import Reason, StopRequest

if TYPE_CHECKING:  # these need torch, which is imported once the platform is chosen
    from mindspeed_mm.parallel.context import ParallelContext
    from mindspeed_mm.training.trainer import Trainer

_log = logs.get(__name__)
_Run = TypeVar("_Run", bound=TrainingFlags)
PROGRAMS = {
    "train": arguments.TRAIN,
    "extract": arguments.EXTRACT,
    "train-vae": autoencoder.TRAIN_VAE,
    "eval-vae": autoencoder.EVAL_VAE,
}


def train(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm train` and pretrain_opensoraplan.py."""
    run_on_ranks("train", arguments.TRAIN, resolve.run_config, stoppable(_pretrain), argv, prog)


def extract(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm extract` and tools/extract_features.py."""
    run_on_ranks("extract", arguments.EXTRACT, _check_extraction, at_once(_extract_features), argv, prog)


def train_vae(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm train-vae` and tools/train_wfvae.py."""
    run_on_ranks(
        "train-vae",
        autoencoder.TRAIN_VAE,
        autoencoder.training_config,
        stoppable(_train_autoencoder),
        argv,
        prog,
    )


def eval_vae(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm eval-vae` and tools/eval_vae.py."""
    run_here(at_once(_evaluate_autoencoder), argv, prog)


def _pretrain(argv: Sequence[str], prog: str | None, request: StopRequest) -> Reason | None:
    config = resolve.run_config(argv, prog=prog)
    platform, parallel = launch.start(config.launch, config.model.allow_tf32, config.model.allow_internal_format)
    from mindspeed_mm.training.build import build_trainer

    sample, save, build_sampler = config.evaluation.sample_model, config.checkpoint.save, None
    if sample is not None and save is not None:
        build_sampler = functools.partial(_sampler, sample, Path(save) / "samples", config)
    blocks = {name: getattr(config.model, name) for name in ("predictor", "ae", "text_encoder", "text_encoder_2")}
    weights = {name: block.from_pretrained for name, block in blocks.items() if block is not None}
    return _fit(
        config,
        parallel,
        {},
        lambda settled: build_trainer(settled, platform, parallel, build_sampler),
        request,
        weights,
    )


def _fit(
    config: _Run,
    parallel: "ParallelContext",
    folders: dict[str, str | None],
    build: "Callable[[_Run], Trainer]",
    request: StopRequest,
    weights: dict[str, str | None],
) -> Reason | None:
    """Trains, alone in --save and from the right checkpoint. folders: output folders of this program alone. weights: paths
    that the networks are loaded from; those of a hub are recorded.
    """
    from mindspeed_mm.training import beginning

    with launch.alone_in(config.checkpoint.save, "--save", parallel, {**_reports(config), **folders}):
        if parallel.is_first and config.checkpoint.save is not None:
            hub.record(config.checkpoint.save, weights)
        checkpoint = beginning.settle(config.checkpoint, parallel, launch.restarts())
        ending = build(dataclasses.replace(config, checkpoint=checkpoint)).fit(request)
    parallel.stop()
    return ending


def _reports(config: TrainingFlags) -> dict[str, str | None]:
    """Output folders of a run besides its checkpoints: flag -> folder."""
    report, profile = config.report, config.tools.profile
    return {
        "--tensorboard-dir": report.tensorboard_dir,
        "--wandb-save-dir": report.wandb_dir if report.wandb_project is not None else None,
        "--swanlab-save-dir": report.swanlab_dir if report.swanlab_project is not None else None,
        "--data-ledger": config.data_ledger,
        "static_param.save_path": profile.static_param.save_path if profile.enable else None,
    }


def _sampler(
    sample: SampleModelConfig, folder: Path, config: RunConfig, engine, ema, encoders
) -> Callable[[int], Path]:
    """Function that samples the videos of --mm-sample, with EMA weights if there are any, into a folder."""
    from mindspeed_mm.sampling.while_training import TrainingSamples

    record = config.distill.record(config.model.diffusion, None)
    if record is not None:  # a student's own steps and guidance
        sample = dataclasses.replace(sample, diffusion=dataclasses.replace(sample.diffusion, **record.defaults()))
    networks = (engine.network, encoders.autoencoder, encoders.text)
    samples = TrainingSamples(sample, *networks, encoders.device, folder, config.seed, config.launch)

    def make(iteration: int) -> Path:
        averages = contextlib.nullcontext() if ema is None else engine.weights_of(ema.averages())
        with averages:
            written = samples(iteration)
        if written:
            _log.info(f"iteration {iteration}: sampled {len(written) - 1} videos, {written[-1]}")
        return samples.folder_of(iteration)

    return make


def _check_extraction(argv: Sequence[str], world_size: int, prog: str | None) -> None:
    resolve.extraction_config(argv, prog)


def _extract_features(argv: Sequence[str], prog: str | None) -> None:
    config, only = resolve.extraction_config(argv, prog)
    layout = dataclasses.replace(config.launch, tensor_size=1, context_size=1, sequence_parallel=False)
    platform, parallel = launch.start(layout, config.model.allow_tf32, config.model.allow_internal_format)
    from mindspeed_mm.training.build import build_extraction

    folder = config.data.dataset_param.basic_parameters.feature_folder
    with launch.alone_in(folder, "feature_folder", parallel, {}):
        extraction = build_extraction(dataclasses.replace(config, launch=layout), platform, parallel)
        if only != "text":
            good, bad = extraction.videos()
            _log.info(f"videos: {good} crops of clips encoded, {bad} could not be decoded")
        if only != "video":
            _log.info(f"texts: {extraction.texts()} captions encoded")
    parallel.stop()


def _train_autoencoder(argv: Sequence[str], prog: str | None, request: StopRequest) -> Reason | None:
    config = autoencoder.training_config(argv, prog=prog)
    platform, parallel = launch.start(config.launch)
    from mindspeed_mm.training.autoencoder import build_autoencoder_trainer

    folders = {"--export": None if config.export is None else str(Path(config.export).parent)}
    weights = {"ae": config.autoencoder.from_pretrained}
    return _fit(
        config,
        parallel,
        folders,
        lambda settled: build_autoencoder_trainer(settled, platform, parallel),
        request,
        weights,
    )


def _evaluate_autoencoder(argv: Sequence[str], prog: str | None) -> None:
    config = autoencoder.evaluation_config(argv, prog)
    platform, parallel = launch.start(config.launch)
    from mindspeed_mm.sampling.writer import write_video
    from mindspeed_mm.training.autoencoder_quality import measure

    found = measure(config, platform.device(0))
    _log.info(f"autoencoder on {found.clips} clips: PSNR {found.psnr:.2f} dB, SSIM {found.ssim:.4f}")
    if config.video is not None:
        write_video(found.comparison.numpy(), Path(config.video), config.fps)
        _log.info(f"wrote {config.video}: original, reconstruction, 4 x difference")
    if config.statistics is not None:
        atomic.write_text(config.statistics, json.dumps(wfvae.statistics(found.shift, found.scale), indent=1))
        _log.info(f"wrote shift and scale of {len(found.shift)} latent channels; name it in ae: {config.statistics}")
    parallel.stop()

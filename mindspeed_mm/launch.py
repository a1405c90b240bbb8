"""Common start of the entry points: turns flags into config, device and process groups; handles errors and exit codes."""

import contextlib
import dataclasses
import datetime
import errno
import functools
import json
import os
import signal
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mindspeed_mm import atomic, logs, stopping
from mindspeed_mm.config import autoencoder, resolve
from mindspeed_mm.config.launch import LaunchConfig
from mindspeed_mm.config.run import RunConfig, TrainingFlags
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.errors import MMError
from mindspeed_mm.families import wfvae
from mindspeed_mm.stopping import Reason, StopRequest

if TYPE_CHECKING:  # these need torch, which is imported once the platform is chosen
    from mindspeed_mm.parallel.context import ParallelContext, Seat
    from mindspeed_mm.training.trainer import Trainer

_log = logs.get(__name__)
_Run = TypeVar("_Run", bound=TrainingFlags)
# Errors of a disk, not of this program: no room, quota, read-only, input or output, file too large, stale NFS handle,
# no permission.
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE, errno.EACCES, errno.EPERM)


def pretrain() -> None:
    """The main program of `pretrain_opensoraplan.py`."""
    _run(functools.partial(_run_stoppable, _pretrain))


def inference() -> None:
    """The main program of `inference.py`."""
    _run(functools.partial(_run_at_once, _inference))


def train_autoencoder() -> None:
    """The main program of `tools/train_wfvae.py`."""
    _run(functools.partial(_run_stoppable, _train_autoencoder))


def evaluate_autoencoder() -> None:
    """The main program of `tools/eval_vae.py`."""
    _run(functools.partial(_run_at_once, _evaluate_autoencoder))


def extract_features() -> None:
    """The main program of `tools/extract_features.py`."""
    _run(functools.partial(_run_at_once, _extract_features))


def _extract_features() -> None:
    signal.signal(signal.SIGTERM, stopping.unwind)  # features encoded so far are written before the exit
    config, only = resolve.extraction_config(sys.argv[1:])
    launch = dataclasses.replace(config.launch, tensor_size=1, context_size=1, sequence_parallel=False)
    platform, parallel = start(launch, config.model.allow_tf32, config.model.allow_internal_format)
    from mindspeed_mm.training.build import build_extraction

    folder = config.data.dataset_param.basic_parameters.feature_folder
    with _alone_in(folder, "feature_folder", parallel, {}):
        extraction = build_extraction(dataclasses.replace(config, launch=launch), platform, parallel)
        if only != "text":
            good, bad = extraction.videos()
            _log.info(f"videos: {good} crops of clips encoded, {bad} could not be decoded")
        if only != "video":
            _log.info(f"texts: {extraction.texts()} captions encoded")
    parallel.stop()


def serve() -> None:
    """The main program of `python -m mindspeed_mm.serve`."""
    _run(functools.partial(_run_at_once, _serve))


def _pretrain(request: StopRequest) -> Reason | None:
    config = resolve.run_config(sys.argv[1:])
    platform, parallel = start(config.launch, config.model.allow_tf32, config.model.allow_internal_format)
    from mindspeed_mm.training.build import build_trainer

    sample, save, build_sampler = config.evaluation.sample_model, config.checkpoint.save, None
    if sample is not None and save is not None:
        build_sampler = functools.partial(_sampler, sample, Path(save) / "samples", config)
    return _fit(
        config, parallel, {}, lambda settled: build_trainer(settled, platform, parallel, build_sampler), request
    )


def _fit(
    config: _Run,
    parallel: "ParallelContext",
    folders: dict[str, str | None],
    build: "Callable[[_Run], Trainer]",
    request: StopRequest,
) -> Reason | None:
    """Trains, alone in --save and from the right checkpoint. folders: output folders of this program alone."""
    from mindspeed_mm.training import beginning

    with _alone_in(config.checkpoint.save, "--save", parallel, {**_reports(config), **folders}):
        checkpoint = beginning.settle(config.checkpoint, parallel, _restarts())
        ending = build(dataclasses.replace(config, checkpoint=checkpoint)).fit(request)
    parallel.stop()
    return ending


def _reports(config: TrainingFlags) -> dict[str, str | None]:
    """Output folders of a run besides its checkpoints: flag -> folder."""
    report, profile = config.report, config.tools.profile
    return {
        "--tensorboard-dir": report.tensorboard_dir,
        "--wandb-save-dir": report.wandb_dir if report.wandb_project is not None else None,
        "--data-ledger": config.data_ledger,
        "static_param.save_path": profile.static_param.save_path if profile.enable else None,
    }


@contextlib.contextmanager
def _alone_in(folder: str | Path | None, flag: str, parallel, others: dict[str, str | None]):
    """Context in which no other run writes to `folder`; checks first that all folders can be written. Collective."""
    from mindspeed_mm.checkpoint import lock, places

    folders = {flag: folder, **others}
    new = [Path(place) for place in folders.values() if place is not None and not Path(place).exists()]
    places.check(folders, parallel.rank)
    try:
        with lock.held(folder, parallel):
            yield
    finally:
        for place in sorted(new, key=lambda place: len(place.parts), reverse=True):
            with contextlib.suppress(OSError):  # unless something has been written
                place.rmdir()


def _sampler(
    sample: SampleModelConfig, folder: Path, config: RunConfig, engine, ema, encoders
) -> Callable[[int], None]:
    """Function that samples the videos of --mm-sample, with EMA weights if there are any, into a folder."""
    from mindspeed_mm.sampling.while_training import TrainingSamples

    networks = (engine.network, encoders.autoencoder, encoders.text)
    samples = TrainingSamples(sample, *networks, encoders.device, folder, config.seed, config.launch)

    def make(iteration: int) -> None:
        averages = contextlib.nullcontext() if ema is None else engine.weights_of(ema.averages())
        with averages:
            written = samples(iteration)
        if written:
            _log.info(f"iteration {iteration}: sampled {len(written) - 1} videos, {written[-1]}")

    return make


def _restarts() -> int:
    """Number of times that torchrun has restarted the ranks."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _inference() -> None:
    config = resolve.sample_config(sys.argv[1:])
    platform, parallel = start(config.launch)
    from mindspeed_mm.sampling.run import run

    with _alone_in(config.model.save_path, "save_path", parallel, {}):
        run(config, platform, parallel)
    parallel.stop()


def _train_autoencoder(request: StopRequest) -> Reason | None:
    config = autoencoder.training_config(sys.argv[1:])
    platform, parallel = start(config.launch)
    from mindspeed_mm.training.autoencoder import build_autoencoder_trainer

    folders = {"--export": None if config.export is None else str(Path(config.export).parent)}
    return _fit(
        config, parallel, folders, lambda settled: build_autoencoder_trainer(settled, platform, parallel), request
    )


def _evaluate_autoencoder() -> None:
    config = autoencoder.evaluation_config(sys.argv[1:])
    platform, parallel = start(config.launch)
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


def _serve() -> None:
    config = resolve.serve_config(sys.argv[1:])
    platform, parallel = start(config.sample.launch)
    from mindspeed_mm.web.app import serve

    serve(config, platform, parallel)
    parallel.stop()


def start(launch: LaunchConfig, allow_tf32: bool = False, allow_internal_format: bool = False):
    """Prepares the platform and joins the process groups; without torchrun there is one process."""
    from mindspeed_mm.platforms.select import select

    platform = select(launch.device, launch.mindspeed)
    platform.prepare(allow_tf32, allow_internal_format)
    platform.device(int(os.environ.get("LOCAL_RANK", "0")))
    from mindspeed_mm.parallel import descriptors
    from mindspeed_mm.parallel.context import ParallelContext  # imports megatron.core, which the platform has prepared

    descriptors.check(int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0")
    parallel = ParallelContext.start(
        platform.backend,
        launch.tensor_size,
        launch.context_size,
        launch.sequence_parallel,
        launch.timeout_minutes,
        _seat(launch.timeout_minutes),
        guidance_parallel=launch.guidance_parallel,
    )
    _log.info(
        f"{platform.name}: TP {parallel.tensor_size}, CP {parallel.context_size}, DP {parallel.data_size}"
        + (", sequence parallel" if parallel.sequence_parallel else "")
        + (", guidance parallel" if parallel.guidance_size > 1 else "")
    )
    return platform, parallel


def _seat(timeout_minutes: float) -> "Seat":
    """Place of this process at the rendezvous of the ranks.

    torchrun may keep one store over its restarts, with addresses of dead ranks, so each start uses its own names in
    it.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from mindspeed_mm.parallel.context import Seat

    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        os.environ.setdefault(name, value)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    store, rank, world_size = next(iter(rendezvous("env://", timeout=timeout)))
    return Seat(dist.PrefixStore(f"start_{_restarts()}", store), rank, world_size)


def _run_stoppable(program: Callable[[StopRequest], Reason | None]) -> None:
    """Runs a program that finishes its step and saves when asked to end; the reason then sets the exit code."""
    with StopRequest(says=_rank() == 0) as request:  # from here on, so that no signal is lost while weights are read
        ending = program(request)
    if ending is not None:
        stopping.ignore(stopping.SCHEDULERS)  # the program is ending with the right exit code
        sys.exit(ending.exit_code)


def _run_at_once(program: Callable[[], None]) -> None:
    """Runs a program without unfinished work: a signal ends it at once."""
    stopping.let_signals_in()
    program()


def _run(program: Callable[[], None]) -> None:
    """Runs a program and prints one of our errors as one line. Exit code 75 if another rank was lost, 130 for Ctrl-C,
    else 1.

    Exits at once: an orderly exit would wait for ranks that wait for this one.
    """
    logs.setup(_rank())
    if "TORCHELASTIC_RUN_ID" in os.environ:
        stopping.die_with_parent()  # a launcher; without it this rank would outlive its launcher
    # megatron-core warnings that users cannot act on.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\..*` is deprecated")
    try:
        _run_to_an_exit_code(program)
    except KeyboardInterrupt:  # also while another error is printed, when this rank's peers may be gone
        if _rank() == 0:
            print("Ctrl-C: ended", file=sys.stderr)
        _end(stopping.INTERRUPTED)
    except stopping.Unwound as error:
        _end(error.exit_code)


def _run_to_an_exit_code(program: Callable[[], None]) -> None:
    try:
        program()
    except MMError as error:
        _end(error.exit_code, f"error: {error}\n" if _first_to_say(str(error)) else "")
    except OSError as error:
        _end(1, f"error: {_disk(error)}\n" if error.errno in _OF_A_DISK else traceback.format_exc())
    except Exception:
        _end(1, traceback.format_exc())


def _disk(error: OSError) -> str:
    """One line about a file that could not be read or written."""
    return f"{error.filename or 'a file'}: {error.strerror}; is there room on the disk, and may it be written?"


def _end(code: int, last_words: str = "") -> None:
    """Ends the process at once. Ignores a closed output."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(last_words)
        sys.stderr.flush()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _first_to_say(message: str) -> bool:
    """True if no other rank has printed this message: wrong input fails on every rank."""
    import torch.distributed as dist

    if not dist.is_initialized():  # errors of flags and JSONs, which all ranks read alike
        return _rank() == 0
    try:
        from mindspeed_mm.parallel.context import ParallelContext

        return ParallelContext.current().store.add(f"said/{zlib.crc32(message.encode())}", 1) == 1
    except RuntimeError:  # the store died with the rank that held it
        return True

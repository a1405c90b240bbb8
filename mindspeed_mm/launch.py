"""Common start of the programs with ranks: device, process groups, folders; handles errors and exit codes."""

import contextlib
import datetime
import errno
import functools
import gc
import os
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_mm import launchers, logs, stopping, torchrun
from mindspeed_mm.config.launch import LaunchConfig
from mindspeed_mm.errors import ConfigError, MMError, RankLost, end_quietly
from mindspeed_mm.platforms import variables
from mindspeed_mm.stopping import Reason, StopRequest

if TYPE_CHECKING:  # it needs torch, which is imported once the platform is chosen
    from mindspeed_mm.parallel.context import Seat

_log = logs.get(__name__)
# Errors of a disk, not of this program: no room, quota, read-only, input or output, file too large, stale NFS handle,
# no permission.
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE, errno.EACCES, errno.EPERM)


def restarts() -> int:
    """Number of times that torchrun has restarted the ranks."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextlib.contextmanager
def alone_in(folder: str | Path | None, flag: str, parallel, others: dict[str, str | None]):
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


@contextlib.contextmanager
def _kept():
    """Python's garbage collector looks neither now nor later at what is imported while inside: it all stays."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def start(launch: LaunchConfig, allow_tf32: bool = False, allow_internal_format: bool = False):
    """Prepares the platform and joins the process groups; without torchrun there is one process."""
    variables.set_all(launch.device, launch.timeout_minutes, os.environ)
    with _kept():
        from mindspeed_mm.platforms.select import select  # imports torch, which the variables precede

        platform = select(launch.device, launch.mindspeed, launch.flash_attention)
        platform.prepare(allow_tf32, allow_internal_format)
        platform.device(int(os.environ.get("LOCAL_RANK", "0")))
        from mindspeed_mm.parallel import descriptors
        from mindspeed_mm.parallel.context import ParallelContext  # imports megatron.core, which the platform prepared

    descriptors.check(int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0")
    parallel = ParallelContext.start(
        platform.backend,
        launch.tensor_size,
        launch.context_size,
        launch.sequence_parallel,
        launch.timeout_minutes,
        _seat(launch.timeout_minutes),
        guidance_parallel=launch.guidance_parallel,
        share_memory=platform.shares_memory,
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

    if "MASTER_ADDR" not in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            "MASTER_ADDR is not set: set it to the address of rank 0's machine, the same for all ranks (mpirun -x MASTER_ADDR)"
        )
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        os.environ.setdefault(name, value)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    store, rank, world_size = next(iter(rendezvous("env://", timeout=timeout)))
    return Seat(dist.PrefixStore(f"start_{restarts()}", store), rank, world_size)


def run_stoppable(program: Callable[[StopRequest], Reason | None]) -> None:
    """Runs a program that finishes its step and saves when asked to end; the reason then sets the exit code."""
    with StopRequest(says=_rank() == 0) as request:  # from here on, so that no signal is lost while weights are read
        ending = program(request)
    if ending is not None:
        stopping.ignore(stopping.SCHEDULERS)  # the program is ending with the right exit code
        sys.exit(ending.exit_code)


def run_at_once(program: Callable[[], None]) -> None:
    """Runs a program without unfinished work: a signal ends it at once."""
    stopping.let_signals_in()
    program()


def run(program: Callable[[str | None], None]) -> None:
    """Runs a program and prints one of our errors as one line. Exit code 75 if another rank was lost, 130 for Ctrl-C,
    else 1. program: takes what has started this rank, see `launchers.adopt`.

    Exits at once: an orderly exit would wait for ranks that wait for this one.
    """
    launcher = launchers.adopt(os.environ)
    logs.setup(_rank())
    if "TORCHELASTIC_RUN_ID" in os.environ:
        stopping.die_with_parent()  # a launcher; without it this rank would outlive its launcher
    # megatron-core warnings that users cannot act on.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\..*` is deprecated")
    try:
        _run_to_an_exit_code(functools.partial(program, launcher))
    except KeyboardInterrupt:  # also while another error is printed, when this rank's peers may be gone
        if _rank() == 0:
            print("Ctrl-C: ended", file=sys.stderr)
        _end(stopping.INTERRUPTED)
    except stopping.Unwound as error:
        _end(error.exit_code)
    end_quietly()


def _run_to_an_exit_code(program: Callable[[], None]) -> None:
    try:
        program()
    except RankLost as error:  # no cause, so that the launcher's last line is not this one
        _end(error.exit_code, _once(f"error: {error}\n"))
    except MMError as error:
        _end_with(error.exit_code, f"error: {error}\n")
    except OSError as error:
        if error.errno not in _OF_A_DISK:
            _end(1, traceback.format_exc())
        _end_with(1, f"error: {_disk(error)}\n")
    except Exception:
        _end(1, traceback.format_exc())


def _disk(error: OSError) -> str:
    """One line about a file that could not be read or written."""
    return f"{error.filename or 'a file'}: {error.strerror}; is there room on the disk, and may it be written?"


def _end_with(code: int, error: str) -> None:
    """Ends the process with a line that our launcher prints last; without it this process does."""
    _end(code, "" if torchrun.leave_word(error, os.environ) else _once(error))


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


def _once(error: str) -> str:
    """The line, or nothing if another rank has printed it: wrong input fails on every rank."""
    if "torch" not in sys.modules:
        return error if _rank() == 0 else ""
    import torch.distributed as dist

    if not dist.is_initialized():  # errors of flags and JSONs, which all ranks read alike
        return error if _rank() == 0 else ""
    try:
        from mindspeed_mm.parallel.context import ParallelContext

        first = ParallelContext.current().store.add(f"said/{zlib.crc32(error.encode())}", 1) == 1
    except RuntimeError:  # the store died with the rank that held it
        return error
    return error if first else ""

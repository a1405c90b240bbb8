"""`mindspeed-mm doctor`: what this machine has for a run, line by line, with what to do where it lacks something."""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform as machine
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mindspeed_mm.cli import hosts
from mindspeed_mm.cli.findings import ERROR, OK, WARNING, Finding
from mindspeed_mm.errors import said_in_one_line
from mindspeed_mm.schema import Program, flag

# Versions that pair: torch, torch_npu, CANN (the table of docs/ascend.md, which does not know the first row's CANN).
TRIPLES = (
    ("2.13.0", "2.13.0", "9.1.0"),
    ("2.12.0", "2.12.0.post3", "9.1.0"),
    ("2.9.0", "2.9.0.post2", "9.0.0"),
    ("2.7.1", "2.7.1.post4", "9.0.0"),
    ("2.7.1", "2.7.1.post2", "8.5.0"),
)
PAIRS = tuple((torch, npu) for torch, npu, _ in TRIPLES)
_ASCEND = Path("/usr/local/Ascend")
_TESTED_PYTHON = ((3, 11), (3, 12))
_OPEN_FILES = 1024  # enough for some 300 ranks, see parallel/descriptors.py
_SHARED_MEMORY_GB = 2.0  # clips of the workers of one rank
_SPEED_MB, _SLOW_MB_S = 64, 50.0
_FREE_GB = 20.0
_CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DoctorFlags:
    folders: tuple[str, ...] = flag(
        (),
        "--folders",
        metavar="DIR",
        help="folders that a run writes to, such as --save: space and speed are measured",
    )
    hosts: tuple[str, ...] = flag(
        (),
        "--hosts",
        metavar="HOST",
        help="all machines of a run, separated by spaces or commas: whether they reach each other and see the same --folders, "
        "and whether two ranks here can sum a tensor",
    )
    port: int = flag(29410, "--port", at_least=1, at_most=2**16 - 1, help="port for --hosts, the same on all machines")
    wait_s: float = flag(
        30.0, "--wait", above=0, at_most=3600, unit="seconds", help="time for the other machines to start, with --hosts"
    )


PROGRAMS = {
    "doctor": Program(
        flags=DoctorFlags,
        description="Say what this machine has for a run, and what to do where it lacks something: Python, torch, devices, "
        "shared memory, open files, decoders, fonts, folders.",
        remarks="Exit code 0: no line is an error; 1: one is. Run it on each machine; with --hosts, within --wait seconds of each "
        "other. Port and folders are shown to nobody but who asks while it runs.",
        examples=(
            "mindspeed-mm doctor --folders /data/run1",
            "mindspeed-mm doctor --hosts node1,node2 --folders /data/run1    # on both",
        ),
    )
}


def doctor(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """`mindspeed-mm doctor`."""
    with said_in_one_line():
        flags = PROGRAMS["doctor"].parse(sys.argv[1:] if argv is None else argv, prog).values
        states = set()
        names = [name for text in flags.hosts for name in text.split(",") if name]
        for finding in examine(flags.folders, names, flags.port, flags.wait_s):
            print(finding, flush=True)
            states.add(finding.state)
    sys.exit(1 if ERROR in states else 0)


def examine(folders: Sequence[str], names: Sequence[str] = (), port: int = 0, wait_s: float = 0) -> Iterator[Finding]:
    """All findings; a check that itself fails is an error with its reason. names, port, wait_s: of the machines to ask."""
    checks: list[Callable[[], Iterator[Finding]]] = [_python, _torch, _memory, _open_files, _decoders, _fonts]
    checks += [(lambda folder=folder: _folder(Path(folder))) for folder in folders]
    if names:
        checks += [lambda: hosts.examine_hosts(names, port, folders, wait_s), hosts.examine_collectives]
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            yield Finding(ERROR, getattr(check, "__name__", "").strip("_<>"), f"cannot be examined: {error}")


def _python() -> Iterator[Finding]:
    version = machine.python_version()
    is_tested = sys.version_info[:2] in _TESTED_PYTHON
    yield Finding(OK if is_tested else WARNING, "python", version, "" if is_tested else "3.11 and 3.12 are tested")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding(
            ERROR, "torch", f"cannot be imported ({error})", "pip install torch, or the build for your device"
        )
        return
    yield Finding(OK, "torch", torch.__version__)
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            text = f"{torch.cuda.get_device_name(number)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB are free"
            yield Finding(OK, f"cuda:{number}", text)
    elif torch.version.cuda is not None:
        yield Finding(WARNING, "cuda", "torch is built for CUDA and finds no device", "look at nvidia-smi")
    yield from pairing(torch.__version__, _version("torch_npu"))
    yield from cann(
        _version("torch_npu"), Path(os.environ.get("ASCEND_TOOLKIT_HOME", _ASCEND / "ascend-toolkit/latest"))
    )


def pairing(torch_version: str, npu_version: str | None) -> Iterator[Finding]:
    """Whether torch and torch_npu belong together; nothing without torch_npu and an NPU."""
    pair = (torch_version.partition("+")[0], npu_version or "")
    if npu_version is None:
        if Path("/dev/davinci0").exists():
            yield Finding(ERROR, "torch_npu", "an NPU is here and torch_npu is not", "docs/ascend.md says which one")
    elif pair in PAIRS:
        yield Finding(OK, "torch_npu", npu_version)
    else:
        wanted = " or ".join(npu for torch, npu in PAIRS if torch == pair[0]) or "none that is known"
        yield Finding(ERROR, "torch_npu", f"{npu_version} with torch {pair[0]}", f"this torch pairs with {wanted}")


def cann(npu_version: str | None, toolkit: Path, driver: Path = _ASCEND / "driver/version.info") -> Iterator[Finding]:
    """Whether CANN belongs to torch_npu, and which driver there is; nothing without torch_npu."""
    wanted = next((version for _, npu, version in TRIPLES if npu == npu_version), None)
    if wanted is None:
        return
    files = sorted(toolkit.glob("*/ascend_toolkit_install.info")) or sorted(toolkit.glob("ascend_toolkit_install.info"))
    found = next(filter(None, (_version_in(file) for file in files)), None)
    if found is None:
        yield Finding(ERROR, "CANN", f"no toolkit in {toolkit}", f"install CANN {wanted} and source its set_env.sh")
    elif found.lower().startswith(wanted):
        yield Finding(OK, "CANN", found)
    else:
        yield Finding(ERROR, "CANN", f"{found} with torch_npu {npu_version}", f"this torch_npu pairs with {wanted}")
    version = _version_in(driver)
    if version is None:
        yield Finding(WARNING, "NPU driver", f"no version in {driver}", "npu-smi info says whether there is one")
    else:
        yield Finding(OK, "NPU driver", version)


def _version_in(file: Path) -> str | None:
    """The value of `version=...` or `Version=...` in a file of CANN's or the driver's."""
    with contextlib.suppress(OSError):
        match = re.search(r"^version=(\S+)", file.read_text(errors="replace"), re.MULTILINE | re.IGNORECASE)
        return match and match[1]
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> Iterator[Finding]:
    place = Path("/dev/shm")
    if place.is_dir():
        free = shutil.disk_usage(place).free / 1e9
        is_enough = free >= _SHARED_MEMORY_GB
        advice = "" if is_enough else "data workers need it: docker run --shm-size 16g, or fewer num_workers"
        yield Finding(OK if is_enough else WARNING, "/dev/shm", f"{free:.1f} GB are free", advice)


def _open_files() -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_enough = hard == resource.RLIM_INFINITY or hard >= _OPEN_FILES
    found = "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard}"
    yield Finding(
        OK if is_enough else WARNING, "open files", found, "" if is_enough else f"raise it to {_OPEN_FILES}: ulimit -n"
    )


def _decoders() -> Iterator[Finding]:
    import av

    missing = [name for name in _CODECS if name not in av.codecs_available]
    if missing:
        yield Finding(
            WARNING, "decoders", f"{', '.join(missing)} are missing", "install PyAV from its wheel: pip install av"
        )
    else:
        yield Finding(OK, "decoders", f"PyAV {av.__version__}: {', '.join(_CODECS)}")
    encodes = "libx264" in av.codecs_available
    yield Finding(
        OK if encodes else ERROR, "encoder", "libx264" + ("" if encodes else " is missing: no mp4 can be written")
    )


def _fonts() -> Iterator[Finding]:
    from PIL import ImageFont

    try:
        ImageFont.truetype("DejaVuSans.ttf", 12)
        yield Finding(OK, "fonts", "DejaVuSans")
    except OSError:
        yield Finding(
            WARNING, "fonts", "no DejaVuSans: sheets use Pillow's own font", "apt-get install fonts-dejavu-core"
        )


def _folder(folder: Path) -> Iterator[Finding]:
    place = next((parent for parent in (folder, *folder.absolute().parents) if parent.is_dir()), Path("/"))
    free = shutil.disk_usage(place).free / 1e9
    advice = "" if free >= _FREE_GB else f"a checkpoint of v1.5 takes more than {_FREE_GB:.0f} GB"
    yield Finding(WARNING if advice else OK, "space", f"{folder}: {free:.0f} GB are free", advice)
    began = time.perf_counter()
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            for _ in range(_SPEED_MB):
                file.write(b"\0" * 2**20)
            file.flush()
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
    except OSError as error:
        yield Finding(
            ERROR, "disk", f"{folder}: cannot be written ({error.strerror})", "give a folder that may be written"
        )
        return
    speed = _SPEED_MB / (time.perf_counter() - began)
    is_slow = speed < _SLOW_MB_S
    yield Finding(
        WARNING if is_slow else OK,
        "disk",
        f"{folder}: writes {speed:.0f} MiB/s",
        "a save takes long; --async-save writes beside the training" if is_slow else "",
    )

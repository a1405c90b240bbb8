"""The real torch_npu wheel, from the package index into a folder of its own.

A plain `pip install torch_npu` makes every later `import torch` fail where CANN is missing (it registers itself to be
loaded with torch), so it must never come near an environment that others use.
"""

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

# torch -> the torch_npu built for it. A row is added when these tests have passed with it.
PAIRS = {"2.13.0": "2.13.0"}
PYTHONS = ((3, 10), (3, 11), (3, 12))
TOOLS = ("g++", "gcc", "nm", "readelf")


def cache() -> Path:
    """Folder for what is downloaded and built, outside the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindspeed_mm" / "simulated_npu"


def obstacle() -> str | None:
    """Why NPUs cannot be simulated on this machine at all; None if they can, and then whatever fails is an error."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"simulated NPUs need Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    if sys.version_info[:2] not in PYTHONS:
        return f"torch_npu has no wheel for Python {platform.python_version()} that is tested here"
    if torch_version() not in PAIRS:
        return f"no torch_npu is recorded for torch {torch_version()}; tests/npu/simulation/wheel.py has {', '.join(PAIRS)}"
    if (cuda := _cuda_of_torch()) is not None:
        return f"torch is built for CUDA {cuda}, which excludes torch_npu: simulated NPUs need the CPU build of torch"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"building the stand-ins for CANN needs {', '.join(missing)}"
    return None


def torch_version() -> str:
    """Such as "2.13.0", without importing torch."""
    return metadata.version("torch").split("+")[0]


def _cuda_of_torch() -> str | None:
    import torch

    return torch.version.cuda


def install() -> Path:
    """The folder that holds the package torch_npu of this torch; downloads it once."""
    version = PAIRS[torch_version()]
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    folder = cache() / f"torch_npu-{version}-{python}"
    with locked(folder.name):
        if not folder.exists():
            building = folder.with_name(folder.name + ".tmp")
            shutil.rmtree(building, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
            subprocess.run([*command, "--target", str(building), f"torch_npu=={version}"], check=True)
            building.rename(folder)
    return folder


@contextlib.contextmanager
def locked(name: str):
    """One process at a time, of all that use this cache."""
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / f"{name}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

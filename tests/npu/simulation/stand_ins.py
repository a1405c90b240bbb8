"""Builds stand-ins for the shared libraries of CANN, so that the real torch_npu loads where there is none.

What torch_npu needs is read off the wheel itself, so another version of it gets other stand-ins:
- functions that it links against and that no library here defines (`nm`),
- operators, a pair of functions each, that it looks up by name when they are called (the names are in its strings),
- the names of the libraries that it asks the loader for (`readelf`).
cann.cpp holds the functions that have to do something; the others are generated and return 0, which is success.
"""

import ctypes
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

from simulation import wheel

SOURCE = Path(__file__).with_name("cann.cpp")

# Looked up by name as well, and an error if absent; doing nothing is right for each. Found by running without them.
LOOKED_UP = [
    "aclSetCompileopt", "aclDestroyTensor", "aclDestroyTensorList", "aclDestroyScalar", "aclDestroyScalarList",
    "aclDestroyIntArray", "aclDestroyBoolArray", "aclDestroyFloatArray", "aclDestroyAclOpExecutor",
    "aclrtSetDeviceSatMode", "aclrtSynchronizeDevice", "aclrtSynchronizeDeviceWithTimeout",
    "aclrtSynchronizeStreamWithTimeout", "aclrtSetOpWaitTimeout", "aclrtSetOpExecuteTimeOut",
    "aclrtDestroyStreamForce", "aclrtSetStreamFailureMode", "aclrtSetSysParamOpt", "aclrtCtxSetSysParamOpt",
    "aclrtPeekAtLastError", "aclrtGetLastError", "aclrtSetStreamAttribute", "HcclSetConfig",
]  # fmt: skip
OF_CANN = re.compile(r"(acl|rt[A-Z]|Msprof|Hccl)\w+")
OPERATOR = re.compile(rb"(?<![A-Za-z0-9_])(acl[A-Za-z0-9]+)GetWorkspaceSize\0")
LIBRARY = re.compile(r"lib(acl|ascend|hccl|hcomm|ge_|graph|runtime|opapi|nnopbase)\w*\.so")
OPENED = ("libopapi.so", "libhcomm.so")  # by name, at run time
ALL = "libascendcl.so"  # carries every function; the other libraries are empty and depend on it


def libraries(torch_npu: Path, torch: Path) -> Path:
    """The folder of the stand-ins for a torch_npu package and a torch package; builds them once."""
    facts = (SOURCE.read_bytes(), Path(__file__).read_bytes(), str(torch_npu).encode())
    folder = wheel.cache() / f"cann-{hashlib.sha256(b''.join(facts)).hexdigest()[:16]}"
    with wheel.locked(folder.name):
        if not folder.exists():
            building = folder.with_name(folder.name + ".tmp")
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            _build(torch_npu, torch, building)
            building.rename(folder)
    return folder


def load(folder: Path) -> ctypes.CDLL:
    """Load the stand-ins into this process, before torch_npu: the loader then finds them by their names."""
    handles = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in sorted(folder.glob("*.so"))]
    assert handles, f"no library in {folder}"
    library = ctypes.CDLL(ALL)
    library.simulated_trace.restype = ctypes.c_char_p
    return library


def _build(torch_npu: Path, torch: Path, out: Path) -> None:
    # Left out: libop_plugin_atb.so, which is opened only for ATB operators and asks for more libraries.
    binaries = [
        *torch_npu.glob("_C*.so"),
        *(path for path in (torch_npu / "lib").glob("*.so") if "atb" not in path.name),
    ]
    torch_binaries = list((torch / "lib").glob("*.so*"))
    wanted = _undefined(binaries) - _defined([*binaries, *torch_binaries]) | set(LOOKED_UP)

    _run(
        "g++",
        "-O1",
        "-fPIC",
        "-Wno-deprecated-declarations",
        "-I",
        torch_npu / "include",
        "-c",
        SOURCE,
        "-o",
        out / "cann.o",
    )
    written = _defined([out / "cann.o"], dynamic=False)
    operators = {name.decode() for name in OPERATOR.findall((torch_npu / "lib" / "libtorch_npu.so").read_bytes())}
    lines = [f"long {name}(void) {{ return 0; }}" for name in sorted(wanted - written)]
    lines += ["void simulated_kernel(const char *name);"]
    for name in sorted(operators):
        lines += [f'long {name}GetWorkspaceSize(void) {{ simulated_kernel("{name}"); return 0; }}']
        lines += [f"long {name}(void) {{ return 0; }}"]
    (out / "generated.c").write_text("\n".join(lines))

    _run(
        "gcc",
        "-shared",
        "-fPIC",
        "-o",
        out / ALL,
        out / "generated.c",
        out / "cann.o",
        f"-Wl,-soname,{ALL}",
        "-lpthread",
        "-lstdc++",
    )
    (out / "empty.c").write_text("typedef int nothing;")
    present = {path.name for path in [*binaries, *torch_binaries]}
    for name in sorted({*_needed(binaries), *OPENED} - present - {ALL}):
        if LIBRARY.fullmatch(name):
            depends = ["-Wl,--no-as-needed", f"-L{out}", "-lascendcl", "-Wl,-rpath,$ORIGIN"]
            _run("gcc", "-shared", "-fPIC", "-o", out / name, out / "empty.c", f"-Wl,-soname,{name}", *depends)


def _undefined(paths: list[Path]) -> set[str]:
    """Functions of CANN among what libraries leave undefined. Those of the C library carry a version behind an @."""
    return {name for name in _symbols("--undefined-only", paths) if OF_CANN.fullmatch(name)}


def _defined(paths: list[Path], dynamic: bool = True) -> set[str]:
    return {name.split("@")[0] for name in _symbols("--defined-only", paths, dynamic)}


def _symbols(which: str, paths: list[Path], dynamic: bool = True) -> set[str]:
    out = _run("nm", *(["-D"] if dynamic else []), which, "--format=posix", *paths)
    return {line.split()[0] for line in out.splitlines() if line and not line.endswith(":")}


def _needed(paths: list[Path]) -> set[str]:
    return set(re.findall(r"\(NEEDED\).*\[(.+?)\]", _run("readelf", "--dynamic", *paths)))


def _run(*command) -> str:
    result = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert result.returncode == 0, f"{command[0]} failed:\n{result.stderr}"
    return result.stdout

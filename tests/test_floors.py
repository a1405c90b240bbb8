"""The map of the package stays true: a file imports lower floors and its own folder only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mindspeed_mm"
FLOORS = {
    "errors": 0,
    "logs": 0,
    "atomic": 0,  # files that are whole or not there
    "stopping": 0,  # how a run is asked to end
    "types": 0,
    "version": 0,
    "schema": 1,  # how a file or a flag becomes a value
    "families": 2,  # networks without tensors
    "files": 2,  # tensors in files
    "config": 3,
    "planning": 4,  # memory and time of a run on paper
    "platforms": 3,
    "parallel": 4,
    "ops": 4,
    "adapters": 5,  # low-rank adapters on any network's linears
    "models": 5,
    "diffusion": 5,
    "data": 5,
    "optim": 5,
    "checkpoint": 5,
    "weights": 6,  # where files/ and models/ meet
    "training": 7,
    "sampling": 7,
    "evaluation": 8,  # figures of finished videos and of weights
    "publishing": 8,  # weights for others: a card from a run's record, and the upload
    "api": 8,
    "serving": 8,  # a server's queue, HTTP API and page
    "diffusers": 8,  # the same networks as components of diffusers
    "torchrun": 8,
    "launchers": 9,
    "launch": 10,
    "cli": 11,  # the command; the published programs call its functions
    "serve": 12,
    "__main__": 12,
    "__init__": 12,
}
# Rooms of data/, with floors of their own: a room imports lower rooms and its own files only.
ROOMS = {
    "workers": 0,  # processes with a time limit, shared memory
    "decode": 0,  # a file, no list
    "lists": 1,
    "text": 2,
    "stored": 3,
    "feed": 3,
    "check": 4,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, int]]:
    """Modules that a file imports anywhere, also inside functions, with their lines."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def part(module: str) -> str:
    """The folder or top-level module of the package that a dotted name belongs to."""
    return module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module, line in imports(path):
        if module.split(".")[0] == "mindspeed_mm":
            other = part(module)
            assert other == own or FLOORS[other] < FLOORS[own], f"{path.name}:{line} imports {module}"


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "data").rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_rooms_of_data_import_down(path):
    own = path.relative_to(PACKAGE / "data").parts[0]
    for module, line in imports(path):
        if module.startswith("mindspeed_mm.data."):
            other = module.split(".")[2]
            assert other == own or ROOMS[other] < ROOMS[own], f"{path.name}:{line} imports {module}"


def test_every_room_of_data_has_a_floor():
    """And no file of data/ lies outside the rooms."""
    inside = {path.name for path in (PACKAGE / "data").iterdir() if path.name != "__pycache__"}
    assert inside == {"__init__.py", *ROOMS}


def test_every_part_has_a_floor():
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} == set(FLOORS)


def test_only_one_file_imports_megatron_and_one_folder_devices():
    for path in FILES:
        for module, line in imports(path):
            name = path.relative_to(PACKAGE)
            if module.startswith("megatron"):
                assert str(name) == "parallel/megatron.py", f"{name}:{line}"
            if module.split(".")[0] == "diffusers":
                assert name.parts[0] == "diffusers", f"{name}:{line}"
            if module.startswith(("torch_npu", "mindspeed.")):
                assert str(name) == "platforms/npu.py", f"{name}:{line}"


@pytest.mark.parametrize("folder", ["config", "families"])
def test_some_floors_are_free_of_torch(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        assert not [module for module, _ in imports(path) if module.split(".")[0] == "torch"]


def test_importing_the_package_starts_nothing():
    """Neither torch nor a device library: `import mindspeed_mm` is cheap and safe anywhere."""
    check = (
        "import sys, mindspeed_mm; print(sorted({'torch', 'torch_npu', 'megatron', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_api_needs_no_launcher_and_no_cuda():
    check = """
import torch, mindspeed_mm as mm
from mindspeed_mm.types import TextFeatures
net = mm.build_denoiser(dict(num_layers=[2, 2, 2], sparse_n=[1, 2, 1], sparse1d=True, num_heads=2, head_dim=16, in_channels=4,
    caption_channels=8, pooled_projection_dim=6, timestep_embed_dim=16))
text = TextFeatures(torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool), torch.randn(1, 6))
print(list(net(torch.randn(1, 4, 2, 8, 8), torch.tensor([0.5]), text).shape), torch.cuda.is_initialized())
"""
    result = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", check], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[1, 4, 2, 8, 8] False"

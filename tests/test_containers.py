"""Files for containers and shells: linters have nothing to say, and what they name is there. No image is built here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_mm.cli.doctor import PAIRS
from mindspeed_mm.cli.main import programs

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
SCRIPTS = sorted(
    path
    for pattern in ("*/*.sh", "examples/*/*.sh", "examples/*/*.sbatch", ".ci/run")
    for path in ROOT.glob(pattern)
    if ".venv" not in path.parts
)


def tool(name: str) -> str:
    """The program, which its package from the index puts beside Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (tests/requirements.txt)")
    return found


def said(*command) -> str:
    result = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return result.stdout + result.stderr


def test_shellcheck_has_nothing_to_say(tmp_path):
    assert len(SCRIPTS) >= 9
    assert said(tool("shellcheck"), "-x", *SCRIPTS) == ""
    bad = tmp_path / "bad.sh"
    bad.write_text("#!/bin/bash\nrm $1\n")
    assert "SC2086" in said(tool("shellcheck"), bad)


def test_hadolint_has_nothing_to_say(tmp_path):
    assert said(tool("hadolint"), *DOCKERFILES) == ""
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN cd /tmp\n")
    assert "DL3006" in said(tool("hadolint"), bad)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.suffix)
def test_what_a_dockerfile_names_is_there(file):
    text = file.read_text()
    copied = [source for line in re.findall(r"^COPY (.+)", text, re.MULTILINE) for source in line.split()[:-1]]
    assert copied == ["requirements.txt", "."]
    ignored = (ROOT / ".dockerignore").read_text().split()
    for needed in ("requirements.txt", "setup.py", "README.md", "mindspeed_mm", "examples", "configs", "docs"):
        assert (ROOT / needed).exists() and needed not in ignored
    extras = re.findall(r"'\.\[(\w+)\]'", text)
    assert extras and all(f'"{extra}": [' in (ROOT / "setup.py").read_text() for extra in extras)
    assert "mindspeed-mm = " in (ROOT / "setup.py").read_text() and "mindspeed-mm" in text.split("ENTRYPOINT")[1]
    assert f"docker build -f docker/{file.name} " in text
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    if "TORCH_NPU" in arguments:
        assert (arguments["TORCH"], arguments["TORCH_NPU"]) in PAIRS
    else:
        assert f"torch=={arguments['TORCH']}" in (ROOT / "requirements.txt").read_text()


def test_compose_starts_the_page_with_flags_that_it_takes():
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    assert set(services) == {"serve", "serve-cuda"}
    for service in services.values():
        assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        command, *flags = service["command"]
        values = programs()[command].parse(flags).values
        (port,) = service["ports"]
        assert port == f"127.0.0.1:7860:{values.port}"  # there is no password
        inside = [volume.split(":")[-2 if volume.endswith(":ro") else -1] for volume in service["volumes"]]
        assert inside == ["/models", "/samples"] and values.mm_model == "/models/sample.json"

"""Repositories of a hub in place of paths, from a local server that speaks the hub's API for two files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, serving

from mindspeed_mm.config import hub
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import node_from_python

FILES = {"config.json": b'{"a": 1}\n', "text_encoder/weights.bin": b"weights" * 100}


@pytest.fixture(scope="module")
def server():
    with serving({"org/name": FILES}) as server:
        yield server


@pytest.fixture
def endpoint(server):
    return server.endpoint


def located(location: str, endpoint: str, home: Path, **variables: str) -> str:
    """What `hub.local` says in a process of its own: the client reads its variables when it is imported."""
    code = "import sys\nfrom mindspeed_mm.config import hub\nfrom mindspeed_mm.errors import MMError\n"
    code += "try:\n    print(hub.local(sys.argv[1]))\nexcept MMError as error:\n    print('error:', error)"
    names = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **variables}
    command = [sys.executable, "-c", code, location]
    done = subprocess.run(command, env={**os.environ, **names}, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr


def test_a_repository_is_downloaded_once_with_its_token_and_works_without_network(server, endpoint, tmp_path):
    server.asked.clear()
    folder = Path(located("org/name", endpoint, tmp_path, HF_TOKEN="hf_secret"))
    assert folder.name == COMMIT  # so that records of the path name the revision
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert {token for _, path, token in server.asked if "/resolve/" in path} == {"Bearer hf_secret"}
    server.asked.clear()
    assert located("org/name:text_encoder", endpoint, tmp_path, HF_HUB_OFFLINE="1") == str(folder / "text_encoder")
    assert server.asked == []


def test_one_part_of_a_repository(endpoint, tmp_path):
    folder = Path(located("hf:org/name@main:text_encoder", endpoint, tmp_path))
    assert folder.name == "text_encoder" and (folder / "weights.bin").read_bytes() == FILES["text_encoder/weights.bin"]
    assert not (folder.parent / "config.json").exists()
    assert "the repository has no vae" in located("org/name:vae", endpoint, tmp_path)


def test_what_the_hub_does_not_have_is_one_line(endpoint, tmp_path):
    said = located("org/another", endpoint, tmp_path)
    assert said.startswith("error: org/another: no such file or folder, and the hub") and "\n" not in said
    assert "modelscope is not installed" in located("modelscope:org/name", endpoint, tmp_path)


def test_paths_stay_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    for path in ("weights/t5", "/no/such", "weights", "a/b/c", "model.pt", "./org/name", ""):
        assert hub.local(path) == path


def test_every_from_pretrained_of_a_config_is_looked_up(monkeypatch):
    monkeypatch.setattr(hub, "local", lambda location: f"/local/{location}")
    node = node_from_python(
        {"ae": {"from_pretrained": "a/b"}, "tokenizers": [{"from_pretrained": "c/d", "name": "e/f"}]}, ""
    )
    found = hub.with_local_weights(node).plain()
    assert found == {
        "ae": {"from_pretrained": "/local/a/b"},
        "tokenizers": [{"from_pretrained": "/local/c/d", "name": "e/f"}],
    }

    def refuse(location):
        raise ConfigError("no such repository")

    monkeypatch.setattr(hub, "local", refuse)
    with pytest.raises(ConfigError, match="ae.from_pretrained: no such repository"):
        hub.with_local_weights(node)

"""Repositories of a hub in place of paths, from a local server that speaks the hub's API for two files."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mindspeed_mm.config import hub
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import node_from_python

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b'{"a": 1}\n', "text_encoder/weights.bin": b"weights" * 100}
INFO = {"id": "org/name", "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0}


class Hub(http.server.BaseHTTPRequestHandler):
    asked: list[tuple[str, str, str | None]] = []

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.asked.append((self.command, self.path, self.headers.get("authorization")))
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/name"):
            if "/tree/" in path:
                return self._json(
                    [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in FILES.items()]
                )
            return self._json({**INFO, "siblings": [{"rfilename": name} for name in FILES]})
        name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
        if name not in FILES:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"})
        etag = f'"{hashlib.sha1(FILES[name]).hexdigest()}"'
        self._send(200, FILES[name], {"X-Repo-Commit": COMMIT, "ETag": etag})

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def endpoint():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def located(location: str, endpoint: str, home: Path, **variables: str) -> str:
    """What `hub.local` says in a process of its own: the client reads its variables when it is imported."""
    code = "import sys\nfrom mindspeed_mm.config import hub\nfrom mindspeed_mm.errors import MMError\n"
    code += "try:\n    print(hub.local(sys.argv[1]))\nexcept MMError as error:\n    print('error:', error)"
    names = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **variables}
    command = [sys.executable, "-c", code, location]
    done = subprocess.run(command, env={**os.environ, **names}, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr


def test_a_repository_is_downloaded_once_with_its_token_and_works_without_network(endpoint, tmp_path):
    Hub.asked.clear()
    folder = Path(located("org/name", endpoint, tmp_path, HF_TOKEN="hf_secret"))
    assert folder.name == COMMIT  # so that records of the path name the revision
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert {token for _, path, token in Hub.asked if "/resolve/" in path} == {"Bearer hf_secret"}
    Hub.asked.clear()
    assert located("org/name:text_encoder", endpoint, tmp_path, HF_HUB_OFFLINE="1") == str(folder / "text_encoder")
    assert Hub.asked == []


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

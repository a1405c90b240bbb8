"""A local server that speaks what of the hub's API downloads and uploads of small files need."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(http.server.ThreadingHTTPServer):
    """repos: name -> path -> content. asked: (method, path, authorization) of every request. created: bodies of requests
    for new repositories. refuse: a status that every commit is answered with.
    """

    def __init__(self, repos: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.blobs: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.created: list[dict] = []
        self.refuse: int | None = None
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server without repositories that the client in this process asks, with an empty cache."""
    from huggingface_hub import constants

    with serving({}) as server:
        # the client reads HF_ENDPOINT when it is imported
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


@contextlib.contextmanager
def serving(repos: dict[str, dict[str, bytes]]) -> Iterator[Server]:
    with Server(repos) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self._begin()
        for name, files in self.server.repos.items():
            if path.startswith(f"/api/models/{name}"):
                return self._about(name, files, path)
            file = path.removeprefix(f"/{name}/resolve/{COMMIT}/")
            if file in files:
                etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
                return self._send(200, files[file], {"X-Repo-Commit": COMMIT, "ETag": etag})
        self._send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"})

    def do_POST(self):
        path = self._begin()
        body = self.rfile.read(int(self.headers["content-length"]))
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            return self._json({"objects": [self._ticket(one) for one in json.loads(body)["objects"]]})
        kind, name = path.split("/")[-2], "/".join(path.split("/")[3:5])
        if kind == "preupload":
            return self._json({"files": [_mode(one["path"]) for one in json.loads(body)["files"]]})
        if kind == "commit" and self.server.refuse:
            return self._send(self.server.refuse, b'{"error": "no room"}', {"Content-Type": "application/json"})
        assert kind == "commit", path
        self._commit(self.server.repos[name], [json.loads(line) for line in body.splitlines()])
        self._json({"commitOid": COMMIT, "commitUrl": f"{self.server.endpoint}/{name}/commit/{COMMIT}"})

    def do_PUT(self):
        path = self._begin()
        data = self.rfile.read(int(self.headers["content-length"]))
        assert hashlib.sha256(data).hexdigest() == path.rpartition("/")[2]
        self.server.blobs[path.rpartition("/")[2]] = data
        self._send(200, b"", {})

    def _begin(self) -> str:
        self.server.asked.append((self.command, self.path, self.headers.get("authorization")))
        return self.path.partition("?")[0]

    def _about(self, name: str, files: dict[str, bytes], path: str):
        if "/tree/" in path:
            return self._json(
                [{"type": "file", "path": file, "size": len(data), "oid": "0" * 40} for file, data in files.items()]
            )
        info = {"id": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0}
        return self._json({**info, "siblings": [{"rfilename": file} for file in files]})

    def _create(self, body: dict):
        name = f"{body['organization']}/{body['name']}"
        found = {"url": f"{self.server.endpoint}/{name}"}
        if name in self.server.repos:
            return self._send(409, json.dumps(found).encode(), {"Content-Type": "application/json"})
        self.server.created.append(body)
        self.server.repos[name] = {}
        return self._json(found)

    def _ticket(self, one: dict) -> dict:
        """Where a large file is sent to; nothing if it was sent before."""
        known = one["oid"] in self.server.blobs
        action = {"upload": {"href": f"{self.server.endpoint}/blobs/{one['oid']}"}}
        return {**one, **({} if known else {"actions": action})}

    def _commit(self, files: dict[str, bytes], lines: list[dict]):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def _mode(path: str) -> dict:
    is_large = path.endswith((".safetensors", ".png", ".model"))
    return {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}

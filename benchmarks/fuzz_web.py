"""The door of `benchmarks/fuzz.py` for requests to the page's server."""

import json
import random
from pathlib import Path

from fuzz_damage import Try, judged, mutated, text_mutated
from web_routes import filled, routes_of

from mindspeed_mm.errors import MMError

# beside every route that the installed gradio has
_PATHS = ("/samples/x.mp4", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://x/", "/assets/x", "/svelte/x")
_FORM = ("a", "b", 4, 3.0, None, 9, 32, 32)
_BODY = json.dumps({"data": _FORM, "session_hash": "s", "fn_index": 9, "event_id": "e"})
_ODD = (None, "", "x", -1, 0, 10**30, 0.5, float("nan"), float("inf"), True, [], {}, "\ud800", "a" * 10**5)


def web_door(folder: Path) -> Try:
    """Requests to the page's server, of every method, path and body; refused is an answer from 400 to 499."""
    from sampling_world import write_world
    from starlette.testclient import TestClient

    from mindspeed_mm.config import resolve
    from mindspeed_mm.platforms.cpu import CpuPlatform
    from mindspeed_mm.sampling.pipeline import T2VPipeline
    from mindspeed_mm.sampling.provenance import weights_of
    from mindspeed_mm.serving import limits
    from mindspeed_mm.web.app import build_app
    from mindspeed_mm.web.studio import Studio

    world = write_world(folder)
    flags = ["--device", "cpu", "--mm-model", str(world / "sample.json"), "--save-path", str(folder / "samples")]
    config = resolve.serve_config(flags, world_size=1)
    studio = Studio(
        config.sample, T2VPipeline.from_config(config.sample.model), CpuPlatform(), weights_of(config.sample)
    )
    client = TestClient(build_app(studio, config), base_url="http://127.0.0.1", raise_server_exceptions=True)
    paths = sorted({filled(pattern) for _, pattern in routes_of(client.app.routes)} | set(_PATHS))
    before = _files(folder)

    def values(chance: random.Random) -> str:
        sent = list(_FORM)
        sent[chance.randrange(len(sent))] = chance.choice(_ODD)
        line = limits.line_of(*sent)
        return judged(1 <= line.num_inference_steps <= 200 and len(line.prompt) <= limits.MAX_CHARACTERS)

    def attempt(chance: random.Random) -> str:
        if chance.random() < 0.3:
            return values(chance)
        path = chance.choice(paths)
        if chance.random() < 0.3:
            path = "/" + mutated(path.encode(), chance).decode("ascii", "ignore").lstrip("/").replace("\x00", "")
            path = "".join(letter for letter in path if 32 < ord(letter) < 127 and letter not in "?#")
        method = chance.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"))
        content = text_mutated(_BODY, chance) if method in ("POST", "PUT", "PATCH") else None
        headers = {"Origin": "http://evil.example"} if chance.random() < 0.2 else {}
        with client.stream(method, path, content=content, headers=headers) as response:  # a heartbeat's body never ends
            status = response.status_code
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                response.read()
        if 400 <= status < 500:
            raise MMError(f"{status}")
        return judged(status in (200, 503) and _files(folder) == before)

    return attempt


def _files(folder: Path) -> list[Path]:
    """What a request left behind shows here."""
    return sorted(folder.rglob("*"))

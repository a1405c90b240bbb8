"""The door of `benchmarks/fuzz.py` for requests to the server of the page and the API."""

import json
import random
from pathlib import Path

from fuzz_damage import Try, judged, mutated, text_mutated

from mindspeed_mm.errors import MMError

_PATHS = (
    *(
        "/",
        "/page.js",
        "/page.css",
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/models/x",
        "/page/page.py",
        "/etc/passwd",
    ),
    *("/v1/videos", "/v1/videos", "/v1/videos", "/v1/videos/x", "/v1/videos/x/content?variant=thumbnail"),
    *("/v1/videos/x/cancel", "/v1/videos?limit=5&after=x&order=asc", "/v1/videos/..%2f..%2fetc%2fpasswd/content"),
)
_VALUES = {
    "prompt": "a", "negative_prompt": "b", "num_inference_steps": 4, "guidance_scale": 3.0, "seed": 5, "frames": 9,
    "size": "32x32", "input_reference": "data:image/png;base64,iVBORw0KGgo=", "last_image": None,
}  # fmt: skip
_ODD = (None, "", "x", -1, 0, 10**30, 0.5, float("nan"), float("inf"), True, [], {}, "\ud800", "a" * 10**5)
_FORM = "".join(
    f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in _VALUES.items()
)
_FORM += '--x\r\nContent-Disposition: form-data; name="last_image"; filename="a.png"\r\n\r\n\x89PNG\r\n--x--\r\n'


def web_door(folder: Path) -> Try:
    """Requests of every method, path and body; refused is an answer from 400 to 499."""
    from sampling_world import write_world
    from stand_in import StandIn
    from starlette.testclient import TestClient

    from mindspeed_mm.serving.app import build_app
    from mindspeed_mm.serving.desk import Desk
    from mindspeed_mm.serving.keys import Keys
    from mindspeed_mm.serving.listening import NAMES
    from mindspeed_mm.serving.metrics import Metrics
    from mindspeed_mm.serving.queue import Queue
    from mindspeed_mm.serving.worker import Worker

    maker = StandIn(write_world(folder) / "sample.json", folder / "samples")
    queue, metrics = Queue(maker.folder, 1000), Metrics()
    worker = Worker(queue, maker)
    worker.start()
    app = build_app(Desk(queue, worker, maker, metrics, "tiny"), Keys({}), 10**5, NAMES)
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=True)
    before = _files(folder)

    def attempt(chance: random.Random) -> str:
        path = chance.choice(_PATHS)
        if chance.random() < 0.3:
            path = "/" + mutated(path.encode(), chance).decode("ascii", "ignore").lstrip("/").replace("\x00", "")
            path = "".join(letter for letter in path if 32 < ord(letter) < 127 and letter not in "?#")
        method = chance.choice(("GET", "POST", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"))
        kind, content = _body(chance) if method in ("POST", "PUT", "PATCH") else ("text/plain", None)
        headers = {"Content-Type": kind, **({"Origin": "http://evil.example"} if chance.random() < 0.1 else {})}
        response = client.request(method, path, content=content, headers=headers)
        if 400 <= response.status_code < 500:
            raise MMError(f"{response.status_code}")
        is_right = response.status_code == 200 and _files(folder) == before
        return judged(is_right and (method != "POST" or _is_sound(response.json())))

    return attempt


def _body(chance: random.Random) -> tuple[str, bytes]:
    """(type, content) of a request for a video, with something odd."""
    kind = chance.randrange(3)
    if kind == 0:
        values = {**_VALUES, chance.choice(list(_VALUES)): chance.choice(_ODD)}
        if chance.random() < 0.7:
            del values["input_reference"]
        return "application/json", json.dumps(values).encode()
    if kind == 1:
        return "application/json", text_mutated(json.dumps({"prompt": "a", "size": "32x32"}), chance)
    return "multipart/form-data; boundary=x", mutated(_FORM.encode("latin-1"), chance)


def _is_sound(video: dict) -> bool:
    """True if every setting of an accepted request is within its rule."""
    return 1 <= video["num_inference_steps"] <= 200 and 0 <= video["seed"] < 2**31 and len(video["prompt"]) <= 4000


def _files(folder: Path) -> list[Path]:
    """What a request left behind shows here; samples and the queue are the server's own."""
    own = ("inputs", "starts.log", "queue.sqlite", "queue.sqlite-wal", "queue.sqlite-shm")
    return sorted(file for file in folder.rglob("*") if file.name not in own and not file.name.startswith("video_"))

"""Whatever is sent to the page's server: only what the page needs is answered, and values are judged there."""

import itertools
import json
import threading
from pathlib import Path

import pytest
from web_routes import filled, routes_of

from mindspeed_mm.config import resolve
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.provenance import weights_of
from mindspeed_mm.serving import limits
from mindspeed_mm.web import doors
from mindspeed_mm.web.studio import Done, Studio

GOOD = ("a red circle", "blurry", 4, 3.0, 5, 9, 32, 32)
# Every route of Gradio 6 that answers; what is not in this list does not exist. A new version's new route fails the test
# below: decide whether the page needs it, and add it here or to `doors.OPEN`.
SHUT = {
    "/custom_component", "/dev/reload", "/login", "/login_check", "/logout", "/openapi.json", "/monitoring", "/proxy=",
    "/file=", "/file", "/stream", "/call", "/api", "/upload", "/upload_progress", "/component_server", "/process_recording",
    "/vibe-edit", "/undo-vibe-edit", "/vibe-code", "/vibe-starter-queries", "/user", "/token", "/runs", "/run-history",
    "/deep_link", "/pwa_icon", "/robots.txt", "/app_id", "/info", "/queue/status", "/reset", "/run",
}  # fmt: skip


@pytest.fixture(scope="module")
def config(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("doors") / "samples"
    flags = ["--device", "cpu", "--mm-model", str(small_model / "sample.json"), "--save-path", str(folder)]
    return resolve.serve_config([*flags, "--max-pixels", "20000"], world_size=1)


@pytest.fixture(scope="module")
def studio(config) -> Studio:
    return Studio(config.sample, T2VPipeline.from_config(config.sample.model), CpuPlatform(), weights_of(config.sample))


@pytest.fixture(scope="module")
def client(studio, config):
    pytest.importorskip("gradio", reason="the web page's extra is not installed")
    from starlette.testclient import TestClient

    from mindspeed_mm.web.app import build_app

    with TestClient(build_app(studio, config), base_url="http://127.0.0.1", raise_server_exceptions=True) as client:
        yield client


def test_every_route_of_the_installed_gradio_is_open_by_name_or_shut(client):
    routes = sorted(routes_of(client.app.routes))
    assert len(routes) > 60  # else they are no longer found
    unknown = []
    for method, pattern in routes:
        path = filled(pattern)
        if doors.is_open(method, path) or pattern == "/samples/{name}":
            continue
        below = path.removeprefix("/gradio_api").rstrip("/")
        if not any(below == name or below.startswith((f"{name}/", f"{name}x")) for name in SHUT):
            unknown.append((method, pattern))
        answer = client.request(method, path, json={} if method == "POST" else None)
        assert answer.status_code == 404 and answer.content in (b"Not Found", b""), (method, path)
    assert [route for route in unknown if route[0] in ("GET", "POST")] == []


def test_no_upload_and_no_recording_leaves_a_file(client, config):
    for path in ("process_recording", "upload", "vibe-edit", "component_server", "stream/x", "call/make", "api/make"):
        assert client.post(f"/gradio_api/{path}", files={"video": ("x.mp4", b"x" * 100)}).status_code == 404
        assert client.post(f"/gradio_api/{path}/", json={}).status_code == 404
    assert not list(Path(config.sample.model.save_path).parent.rglob("*"))


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/queue/join/", "/gradio_api/queue", "//gradio_api/queue/join", "/gradio_api/run/other",
        "/assets/..%2f..%2fetc/passwd", "/samples/x.txt", "/samples/a.mp4/b", "/config/x", "/gradio_api/heartbeat/a/b",
    ],
)  # fmt: skip
def test_what_looks_like_an_open_door_is_shut(client, path):
    assert client.post(path, json={}).status_code == 404
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Host": "evil.example"}, 400),
    ],
)
def test_other_pages_reach_nothing(client, headers, status):
    assert client.post("/gradio_api/reset", json={"event_id": "x"}, headers=headers).status_code == status
    if status == 403:
        assert client.get("/config", headers=headers).status_code == 403


def test_a_link_to_the_page_may_be_followed(client):
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x" * (doors.MAX_BODY + 1), 413),
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b"[" * 60_000, 400),
        (b'{"data": 5}', 400),
        (b'{"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}', 400),
        (b'{"data": [["x"]]}', 400),
        (b'{"session_hash": "\\ud800"}', 400),
        (b'\xff\xfe{"a": 1}', 400),
    ],
)
def test_a_body_is_a_small_object_of_plain_values(client, body, status):
    for path in ("queue/join", "run/predict", "cancel", "reset"):
        assert client.post(f"/gradio_api/{path}", content=body).status_code == status


# --------------------------------------------------------------------------------------------------------------- values

ODD = [
    None,
    "",
    "x",
    "9",
    -1,
    0,
    10**30,
    -(10**30),
    0.5,
    float("nan"),
    float("inf"),
    True,
    [],
    {},
    b"x",
    "\ud800",
    "a" * 10**6,
]


def test_whatever_is_sent_for_a_value_is_refused_by_name_or_is_one(studio):
    """Each value of the form in turn is something odd; what is accepted lies within the limits."""
    refused = 0
    for at, odd in itertools.product(range(len(GOOD)), ODD):
        values = [*GOOD[:at], odd, *GOOD[at + 1 :]]
        try:
            line = limits.line_of(*values)
        except ConfigError as error:
            refused += 1
            assert len(str(error)) < 150 and "\n" not in str(error)
            continue
        json.dumps([line.prompt, line.negative_prompt]).encode()
        assert len(line.prompt) <= limits.MAX_CHARACTERS and len(line.negative_prompt) <= limits.MAX_CHARACTERS
        assert 1 <= line.num_inference_steps <= 200 and 1 <= line.guidance_scale <= 50
        assert line.seed is None or 0 <= line.seed < 2**31
        assert all(type(size) is int and size >= 1 for size in line.input_size)
    assert refused > 90


def test_a_size_that_cannot_be_made_is_refused_before_any_work(studio):
    for size in ((9, 64, 64), (4089, 8192, 8192)):
        with pytest.raises(ConfigError, match=r"pixels, more than --max-pixels 20,000; request less"):
            next(studio.make(limits.line_of(*GOOD[:5], *size)))
    assert not studio.archive.folder.exists() or not list(studio.archive.folder.glob("*.json"))


def test_a_job_refuses_the_same_size(small_model):
    flags = ["--device", "cpu", "--mm-model", str(small_model / "sample.json")]
    with pytest.raises(ConfigError, match="9 x 32 x 32 are 9,216 pixels, more than --max-pixels 9,000"):
        resolve.sample_config([*flags, "--max-pixels", "9000"], world_size=1)


# -------------------------------------------------------------------------------------------------------------- stopping


def test_a_step_is_stopped_in_its_middle_and_by_its_owner_only(studio):
    line = limits.line_of(*GOOD)
    blocks = 0
    block = studio.pipeline.denoiser.blocks()[0]

    def count_and_stop(*_):
        nonlocal blocks
        blocks += 1
        studio.stop("somebody else" if blocks < 3 else "me")

    handle = block.register_forward_pre_hook(count_and_stop)
    try:
        news = list(studio.make(line, owner="me"))
    finally:
        handle.remove()
    assert [step.number for step in news] == [1, 2]  # and the third ended behind its first block
    assert blocks == 3
    assert not studio.archive.folder.exists() or not list(studio.archive.folder.glob("*.mp4"))
    assert isinstance(list(studio.make(line, owner="me"))[-1], Done)


def test_stopping_from_another_thread_ends_the_work(studio):
    work = studio.make(limits.line_of(*GOOD[:2], 200, *GOOD[3:]), owner="me")
    next(work)
    thread = threading.Thread(target=studio.stop, args=("me",))
    thread.start()
    thread.join()
    assert list(work) == []

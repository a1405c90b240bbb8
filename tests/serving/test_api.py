"""OpenAI's own client makes, finds, fetches and deletes videos of the real pipeline."""

import errno
import itertools
import json
import socket
import time
import urllib.error
import urllib.request
from collections import Counter

import openai
import pytest
from api_server import MODEL, client_of, ended, served
from stand_in import StandIn

from mindspeed_mm.config import resolve
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.provenance import weights_of
from mindspeed_mm.sampling.writer import write_video
from mindspeed_mm.serving.maker import SampleMaker
from mindspeed_mm.serving.queue import Queue


@pytest.fixture(scope="module")
def maker(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "videos"
    flags = ["--device", "cpu", "--mm-model", str(small_model / "sample.json"), "--save-path", str(folder), "--api"]
    config = resolve.serve_config([*flags, "--max-pixels", "40000"], world_size=1).sample
    return SampleMaker(config, T2VPipeline.from_config(config.model), CpuPlatform(), weights_of(config))


@pytest.fixture(scope="module")
def server(maker):
    with served(maker) as (address, desk):
        yield address, desk


@pytest.fixture
def client(server):
    return client_of(server[0])


@pytest.fixture(scope="module")
def quick(small_model, tmp_path_factory):
    stand_in = StandIn(small_model / "sample.json", tmp_path_factory.mktemp("quick") / "videos", step_s=0.05)
    with served(stand_in) as (address, _):
        yield client_of(address)


def test_a_video_is_the_one_that_a_notebook_makes(client, server, maker, tmp_path):
    video = client.videos.create(prompt="a blue square", model=MODEL, size="32x32", extra_body={"seed": 5})
    assert (video.object, video.size, video.seconds, video.seed) == ("video", "32x32", "0.375", 5)
    video = ended(client, video.id)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    content = client.videos.download_content(video.id).read()
    frames = maker.pipeline("a blue square", seed=5, progress=False)
    write_video(frames, tmp_path / "notebook.mp4", 24)
    assert content == (tmp_path / "notebook.mp4").read_bytes()
    assert video.id in [one.id for one in client.videos.list()]


def test_every_setting_reaches_the_sample(client, server):
    extra = {
        "seed": 7, "guidance_scale": 2.5, "num_inference_steps": 3, "negative_prompt": "dark", "frames": 17,
    }  # fmt: skip
    video = ended(client, client.videos.create(prompt="a cat", size="48x32", extra_body=extra).id)
    record = json.loads((server[1].maker.folder / f"{video.id}.json").read_text())["sample"]
    settings = record["settings"]
    assert settings["pipeline_config"]["input_size"] == [17, 32, 48]
    assert settings["diffusion"]["num_inference_steps"] == 3 and settings["diffusion"]["guidance_scale"] == 2.5
    assert (record["negative_prompt"], record["seed"]) == ("dark", 7)


def test_seconds_give_the_nearest_length_that_the_autoencoder_has(quick):
    video = quick.videos.create(prompt="a cat", seconds="0.7", size="16x16")
    assert (video.seconds, video.frames) == ("0.7", 17)  # 16.8 frames


def test_a_deleted_video_and_its_files_are_gone(client, server):
    video = ended(client, client.videos.create(prompt="a cat").id)
    folder = server[1].maker.folder
    assert list(folder.glob(f"{video.id}*"))
    assert client.videos.delete(video.id).deleted
    assert not list(folder.glob(f"{video.id}*"))
    for call in (client.videos.retrieve, client.videos.delete, client.videos.download_content):
        with pytest.raises(openai.NotFoundError, match="there is no such video"):
            call(video.id)


@pytest.mark.parametrize(
    ("fields", "error", "words", "param"),
    [
        ({"promt": "a"}, openai.BadRequestError, r"unknown fields: 'promt'.*prompt", "promt"),
        ({"size": "32"}, openai.UnprocessableEntityError, "size '32': give WIDTHxHEIGHT", "size"),
        ({"seed": "-1"}, openai.UnprocessableEntityError, "seed '-1'|seed -1", "seed"),
        ({"seconds": "x"}, openai.UnprocessableEntityError, "seconds 'x': give a number", "seconds"),
        ({"frames": 10}, openai.UnprocessableEntityError, "10 frames", None),
        ({"size": "4096x4096"}, openai.UnprocessableEntityError, "pixels", None),
        ({"prompt": "x" * 5000}, openai.UnprocessableEntityError, "5000 characters", "prompt"),
        ({"model": "other"}, openai.NotFoundError, "'tiny' alone", "model"),
        ({"input_reference": "http://a/b.png"}, openai.UnprocessableEntityError, "data URL", "input_reference"),
        ({"prompt": "x" * 2_000_000}, openai.APIStatusError, "larger than 1000000 bytes", None),
    ],
)
def test_a_refusal_has_openais_form_and_names_the_field(quick, fields, error, words, param):
    for send in (
        lambda: quick.videos.create(prompt="a", extra_body=fields),
        lambda: quick.post("/videos", body={"prompt": "a", **fields}, cast_to=object),  # JSON
    ):
        with pytest.raises(error, match=words) as caught:
            send()
        assert caught.value.body["param"] == param and caught.value.body["type"] == "invalid_request_error"
    assert caught.value.status_code in (400, 404, 413, 422)


ODD = (None, "", "x", -1, 0, 10**30, 0.5, float("nan"), float("inf"), True, [], [1], {}, "\ud800", "1e400", "٣")
NAMES = (
    *("prompt", "model", "seconds", "size", "frames", "input_reference", "seed", "guidance_scale"),
    *("num_inference_steps", "negative_prompt", "input_reference[image_url]", "\ud800", "__class__"),
)


def test_whatever_is_sent_is_accepted_or_refused_in_openais_form(quick):
    base = str(quick.base_url)
    answers = Counter()
    for name, value in itertools.product(NAMES, ODD):
        answers[_sent(base + "videos", json.dumps({"prompt": "a", name: value}).encode(), "application/json")] += 1
    for body, kind in (
        (b"{", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"prompt": "a", "prompt": "b"}', "application/json"),
        (b"[]", "application/json"),
        (b"\xff", "application/json"),
        (b"prompt=a&prompt=b", "application/x-www-form-urlencoded"),
        (b"a", "multipart/form-data"),
        (b"--x", "multipart/form-data; boundary=x"),
        (
            b"--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\n1\r\n--x--",
            "multipart/form-data; boundary=x",
        ),
        (b"a", "text/plain"),
    ):
        status = _sent(base + "videos", body, kind)
        assert status in (400, 415, 422), (body[:40], kind, status)
    for path in ("videos/x/y", "videos/..%2f..%2fetc", "nothing", "models/%ff", "videos?limit=x", "videos?order=x"):
        assert _sent(base + path, None, "") in (404, 422), path
    assert _sent(base + "models", b"{}", "application/json") == 405
    # 429 where the worker is slower than the requests: the queue is full then (test_queue.py).
    assert {200, 400, 404, 422} <= set(answers) <= {200, 400, 404, 422, 429} and answers[422] > 60


def test_a_client_that_leaves_in_its_request_is_no_fault(server, caplog):
    address, desk = server
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        time.sleep(0.2)
    until = time.monotonic() + 10
    while 'status="499"' not in desk.metrics.text({}, True):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert caplog.text == ""


def test_a_full_disk_is_said_once_and_accepts_nothing(quick, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "queue.sqlite")

    before = len(quick.videos.list().data)
    monkeypatch.setattr(Queue, "add", full)
    for _ in range(3):
        with pytest.raises(openai.InternalServerError, match="nothing was accepted") as caught:
            quick.videos.create(prompt="a")
    assert caught.value.status_code == 503 and int(caught.value.response.headers["retry-after"]) > 0
    assert caplog.text.count("No space left") == 1 and "queue.sqlite" not in str(caught.value)
    assert len(quick.videos.list().data) == before


def _sent(url: str, body: bytes | None, kind: str) -> int:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        assert set(json.load(error)["error"]) == {"message", "type", "param", "code"}
        return error.code


def test_the_service_says_its_models_health_and_figures(client, server):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with urllib.request.urlopen(f"{server[0]}/health") as answer:
        assert json.load(answer) == {"status": "ok", "reason": None}
    with urllib.request.urlopen(f"{server[0]}/metrics") as answer:
        text = answer.read().decode()
    assert 'mindspeed_mm_jobs{status="queued"} 0' in text
    assert 'mindspeed_mm_requests_total{method="GET",route="/health",status="200"}' in text
    assert 'mindspeed_mm_queue_seconds_count{operation="add"}' in text

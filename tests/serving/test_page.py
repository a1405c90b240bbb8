"""The page is three files of the package, and the API says what it shows: the place in the queue, pictures, defaults."""

import io
import re
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import openai
import pytest
from api_server import client_of, ended, served
from PIL import Image
from stand_in import StandIn

from mindspeed_mm import serving
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.serving.maker import jpeg_of
from mindspeed_mm.serving.previews import Previews
from mindspeed_mm.serving.queue import New, Queue

FILES = {"": "page.html", "page.js": "page.js", "page.css": "page.css"}
FOLDER = Path(serving.__file__).parent / "page"


class Painting(StandIn):
    """Waits behind its second step until `go` is set; its picture shows how often it was asked for one."""

    def __init__(self, sample_json, folder):
        super().__init__(sample_json, folder)
        self.go = threading.Event()
        self.pictures = 0

    def make(self, name, line, tell, check):
        def picture() -> bytes:
            self.pictures += 1
            return jpeg_of(np.full((36, 64, 3), 200, np.uint8))

        while not self.go.wait(0.005):
            tell(2, 4, picture)
            check()
        return super().make(name, line, tell, check)


@pytest.fixture
def painting(small_model, tmp_path):
    return Painting(small_model / "sample.json", tmp_path / "videos")


def fetched(client: openai.OpenAI, id: str, variant: str) -> bytes:
    return client.videos.download_content(id, variant=variant).read()


def test_the_page_is_files_of_the_package_that_name_no_other_host(small_model, tmp_path):
    with served(StandIn(small_model / "sample.json", tmp_path)) as (address, _):
        for path, name in FILES.items():
            with urllib.request.urlopen(f"{address}/{path}") as answer:
                assert answer.read() == (FOLDER / name).read_bytes()
                assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
        link = urllib.request.Request(address, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
        with urllib.request.urlopen(link) as answer:
            assert answer.status == 200
        for path, headers in (("page/page.html", {}), ("page.py", {}), ("", {"Origin": "http://evil.example"})):
            with pytest.raises(urllib.error.HTTPError, match="40[34]"):
                urllib.request.urlopen(urllib.request.Request(f"{address}/{path}", headers=headers))
    assert {file.name for file in FOLDER.iterdir()} == set(FILES.values())
    text = "".join((FOLDER / name).read_text() for name in FILES.values())
    assert not re.search(r"https?://|//[a-z]+\.|innerHTML|\beval\b|onclick=| style=", text)


def test_the_api_alone_has_no_page(small_model, tmp_path):
    with (
        served(StandIn(small_model / "sample.json", tmp_path), has_page=False) as (address, _),
        pytest.raises(urllib.error.HTTPError, match="404"),
    ):
        urllib.request.urlopen(address)


def test_a_place_in_the_queue_is_said_and_a_job_that_ends_the_server_is_last(tmp_path):
    queue = Queue(tmp_path, 10)
    for number in range(4):
        queue.add(New(f"video_{number}", "a", {}, str(number)))
    for _ in range(3):  # the server ends at the first one again and again
        assert queue.take().id == "video_0"
        queue.resume()
    assert [queue.position(f"video_{number}") for number in range(4)] == [4, 1, 2, 3]
    queue.take()
    assert [queue.position(f"video_{number}") for number in (0, 1, 2, 9)] == [3, None, 1, None]


def test_the_video_at_work_shows_a_picture_to_who_asks(painting):
    with served(painting) as (address, desk):
        client = client_of(address)
        first, second = (client.videos.create(prompt=prompt).id for prompt in ("a", "b"))
        while desk.worker.progress(first) == 0:
            time.sleep(0.01)
        assert client.videos.retrieve(second).queue_position == 1
        assert client.videos.retrieve(first).queue_position is None and client.videos.retrieve(first).started_at > 0
        assert painting.pictures == 0
        with pytest.raises(openai.ConflictError, match="no picture of it yet"):
            fetched(client, first, "thumbnail")
        with pytest.raises(openai.ConflictError, match="is queued"):
            fetched(client, second, "thumbnail")
        while desk.worker.previews.look(first) is None:
            time.sleep(0.01)
        with Image.open(io.BytesIO(fetched(client, first, "thumbnail"))) as picture:
            assert (picture.format, picture.size) == ("JPEG", (64, 36))
        painting.go.set()
        ended(client, second)
        with pytest.raises(openai.NotFoundError, match="can no longer be read"):  # a stand-in's file is no video
            fetched(client, first, "thumbnail")
        with pytest.raises(openai.UnprocessableEntityError, match="video or thumbnail"):
            fetched(client, first, "spritesheet")


def test_pictures_take_a_tenth_of_the_time_at_most():
    now = 0.0
    previews = Previews(lambda: now)
    made = []

    def make() -> bytes:
        nonlocal now
        now += 1.0
        made.append(now)
        return b"picture"

    previews.begin("a")
    previews.offer(make)
    assert made == []  # nobody looks
    for _ in range(100):
        previews.look("a")
        previews.look("b")
        previews.offer(make)
        now += 0.5
    assert 4 <= len(made) <= 6 and previews.look("a") == b"picture"
    previews.begin("b")
    assert previews.look("a") is previews.look("b") is None


def test_the_model_says_what_a_request_may_leave_out(small_model, tmp_path):
    with served(StandIn(small_model / "sample.json", tmp_path)) as (address, _):
        client = client_of(address)
        model = client.models.retrieve("tiny")
        assert (model.images, model.frames_per_second) == ([], 24)
        video = client.videos.create(prompt="a")
        left_out = {name: getattr(video, name) for name in model.defaults}
        assert left_out == model.defaults


def test_a_prompt_that_cleaning_empties_is_said(small_model, tmp_path):
    with served(StandIn(small_model / "sample.json", tmp_path)) as (address, _):
        client = client_of(address)
        assert "translate the texts" in client.videos.create(prompt="一只猫在草地上").warning
        assert client.videos.create(prompt="a cat").warning is None


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    from mindspeed_mm.serving import run

    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"the server needs fastapi.*pip install 'mindspeed_mm\[serve\]'"):
        run._check_installed()


def test_a_taken_port_is_named():
    from mindspeed_mm.serving.listening import listen

    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: Address already in use"):
            listen("127.0.0.1", port)

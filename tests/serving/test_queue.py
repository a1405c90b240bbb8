"""The queue, and the worker that empties it: limits, order, what a full disk, a cancel and a restart leave."""

import contextlib
import errno
import socket
import sqlite3
import threading
import time
import urllib.error
import urllib.request

import openai
import pytest
from api_server import client_of, ended, served
from stand_in import StandIn

from mindspeed_mm.errors import ConfigError, ServerFull
from mindspeed_mm.serving.connections import PatientProtocol
from mindspeed_mm.serving.keys import VARIABLE, Keys
from mindspeed_mm.serving.queue import DONE, FAILED, QUEUED, RUNNING, New, Queue, Repeated

TOKENS = {name: f"{name}-token-0123456789" for name in ("alice", "bob")}


def new(number: int, repeat_key: str | None = None, owner: str = "a") -> New:
    return New(f"video_{number}", owner, {"line": {"number": number}}, f"digest {number}", repeat_key)


def test_jobs_come_in_their_order_and_survive_the_process(tmp_path):
    queue = Queue(tmp_path, 10)
    for number in range(3):
        queue.add(new(number))
    assert (queue.take().id, queue.take().id) == ("video_0", "video_1")
    queue.finish("video_0", "0.mp4")
    queue._rows.close()  # as a killed process: nothing is said to the queue
    queue = Queue(tmp_path, 10)
    (back,) = queue.resume()
    assert (back.id, back.status, back.starts) == ("video_1", QUEUED, 1)
    assert [queue.take().id, queue.take().id, queue.take()] == ["video_1", "video_2", None]
    assert queue.get("video_0").file == "0.mp4" and queue.counts() == {QUEUED: 0, RUNNING: 2, DONE: 1, FAILED: 0}


def test_a_job_that_ends_the_server_again_and_again_lets_others_go_first_and_fails_at_last(tmp_path):
    queue = Queue(tmp_path, 10)
    queue.add(new(0))
    queue.add(new(1))
    for _ in range(3):
        assert queue.take().id == "video_0"
        assert queue.resume()[0].status == QUEUED
    assert queue.take().id == "video_1"
    queue.finish("video_1", "1.mp4")
    for _ in range(16):
        assert queue.take().id == "video_0"
        assert queue.resume()[0].status == QUEUED
    queue.take()
    (job,) = queue.resume()
    assert (job.status, job.code, queue.take()) == (FAILED, "server_ended", None)


def test_a_full_queue_and_a_keys_limit_are_refused(tmp_path):
    queue = Queue(tmp_path, 2)
    queue.add(new(0), most_of_owner=1)
    with pytest.raises(ServerFull, match="1 of your videos are unfinished, and 1 may be"):
        queue.add(new(1), most_of_owner=1)
    queue.add(new(1, owner="b"), most_of_owner=1)
    with pytest.raises(ServerFull, match="2 videos wait already, and 2 may"):
        queue.add(new(2))
    queue.take()
    queue.add(new(2))


def test_a_repeated_request_finds_its_job_and_another_one_is_refused(tmp_path):
    queue = Queue(tmp_path, 1)
    first, is_new = queue.add(new(0, "k"))
    assert is_new and queue.add(new(0, "k")) == (first, False)  # although the queue is full
    with pytest.raises(Repeated):
        queue.add(new(1, "k"))
    with pytest.raises(ServerFull):
        queue.add(new(1, "k", owner="b"))  # the key of another owner is another one


def test_a_full_disk_changes_nothing_and_is_an_error_of_the_system(tmp_path):
    queue = Queue(tmp_path, 10_000)
    queue.add(new(0))
    queue._rows.execute(f"PRAGMA max_page_count = {queue._rows.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(OSError) as caught:
        for number in range(1, 1000):
            queue.add(new(number))
    assert caught.value.errno == errno.ENOSPC
    held = queue.counts()[QUEUED]
    queue._rows.execute("PRAGMA max_page_count = 100000")
    queue.add(new(5000))
    assert queue.counts()[QUEUED] == held + 1 < 1000


def test_a_queue_of_another_version_is_refused(tmp_path):
    Queue(tmp_path, 1).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.sqlite")) as rows:
        rows.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="a queue of format 99"):
        Queue(tmp_path, 1)


def test_keys_are_read_from_a_file_or_the_variable_and_never_said(tmp_path):
    (tmp_path / "keys").write_text(f"# names\nalice {TOKENS['alice']} 2\nbob {TOKENS['bob']}  # all of it\n")
    keys = Keys.read(str(tmp_path / "keys"), 7)
    assert (keys.of(f"Bearer {TOKENS['alice']}").limit, keys.of(f"bearer {TOKENS['bob']}").limit) == (2, 7)
    for wrong in (None, "", "Bearer", "Bearer x", f"Basic {TOKENS['bob']}"):
        assert keys.of(wrong) is None
    assert Keys.read(None, 3, {}).of(None).limit == 3 and not Keys.read(None, 3, {}).are_asked
    assert Keys.read(None, None, {VARIABLE: f"bob {TOKENS['bob']}"}).of(f"Bearer {TOKENS['bob']}").name == "bob"
    for text, words in (
        ("alice", "line 1: need NAME TOKEN"),
        ("alice secret", "the token has 6 characters; use 16"),
        (f"alice {TOKENS['alice']} x", "LIMIT a whole number"),
        (f"a {TOKENS['alice']}\nb {TOKENS['alice']}", "line 2: a name or token that another line has"),
        ("", "holds no key"),
    ):
        (tmp_path / "keys").write_text(text)
        with pytest.raises(ConfigError, match=words) as caught:
            Keys.read(str(tmp_path / "keys"), None)
        assert "secret" not in str(caught.value) and TOKENS["alice"] not in str(caught.value)


@pytest.fixture
def slow(small_model, tmp_path):
    """A maker that waits in its second step until `go` is set."""

    class Waiting(StandIn):
        go = threading.Event()

        def make(self, name, line, tell, check):
            tell(1, 4)
            while not self.go.wait(0.01):
                check()
            return super().make(name, line, tell, check)

    return Waiting(small_model / "sample.json", tmp_path / "videos")


def test_each_key_sees_its_own_videos_and_has_its_limit(slow):
    text = "\n".join(f"{name} {token} 1" for name, token in TOKENS.items())
    with served(slow, keys=Keys.read(None, None, {VARIABLE: text})) as (address, _):
        alice, bob, nobody = (client_of(address, token) for token in (*TOKENS.values(), "nobody"))
        with pytest.raises(openai.AuthenticationError, match="send a token"):
            nobody.videos.create(prompt="a")
        mine = alice.videos.create(prompt="a")
        with pytest.raises(openai.RateLimitError, match="1 of your videos") as caught:
            alice.videos.create(prompt="b")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        other = bob.videos.create(prompt="c")
        for call in (bob.videos.retrieve, bob.videos.delete, bob.videos.download_content):
            with pytest.raises(openai.NotFoundError):
                call(mine.id)
        assert [video.id for video in bob.videos.list()] == [other.id]
        slow.go.set()
        assert ended(alice, mine.id).status == ended(bob, other.id).status == "completed"


def test_a_running_video_is_cancelled_or_deleted_within_a_step(slow):
    with served(slow) as (address, desk):
        client = client_of(address)
        first, second, third = (client.videos.create(prompt=f"{n}").id for n in range(3))
        while client.videos.retrieve(first).progress == 0:
            time.sleep(0.01)
        assert client.videos.retrieve(first).status == "in_progress" and client.videos.retrieve(first).progress == 24
        with pytest.raises(openai.ConflictError, match="is in_progress"):
            client.videos.download_content(first)
        state = client.post(f"/videos/{first}/cancel", cast_to=object)
        assert (state["status"], state["error"]["code"]) == ("failed", "cancelled")
        client.videos.delete(third)  # which waits
        while client.videos.retrieve(second).status != "in_progress":
            time.sleep(0.01)
        client.videos.delete(second)
        slow.go.set()
        last = client.videos.create(prompt="last").id
        assert ended(client, last).status == "completed"
        assert [video.id for video in client.videos.list()] == [last, first]
        assert sorted(path.name for path in slow.folder.glob("video_*")) == [f"{last}.mp4"]
        assert desk.queue.removed() == []


def test_lists_come_in_pages_and_repeats_find_their_video(small_model, tmp_path):
    with served(StandIn(small_model / "sample.json", tmp_path / "videos")) as (address, _):
        client = client_of(address)
        ids = [client.videos.create(prompt=f"{n}").id for n in range(5)]
        assert [video.id for video in client.videos.list(limit=2, order="asc")] == ids  # the client turns the pages
        page = client.videos.list(limit=2)
        assert [video.id for video in page.data] == ids[:2:-1] and page.has_more
        again = {"Idempotency-Key": "once"}
        first = client.videos.create(prompt="x", extra_headers=again)
        assert client.videos.create(prompt="x", extra_headers=again).id == first.id
        with pytest.raises(openai.UnprocessableEntityError, match="came before with another request"):
            client.videos.create(prompt="y", extra_headers=again)
        with pytest.raises(openai.UnprocessableEntityError, match="limit 1000"):
            client.videos.list(limit=1000)


def test_while_the_disk_is_full_the_finished_work_is_kept(small_model, tmp_path):
    maker = StandIn(small_model / "sample.json", tmp_path / "videos")
    maker.is_full = True
    with served(maker) as (address, desk):
        client = client_of(address)
        id = client.videos.create(prompt="a").id
        while desk.health()[0]:
            time.sleep(0.01)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{address}/health")
        assert "No space left" in desk.health()[1]["reason"]
        maker.is_full = False
        assert ended(client, id).status == "completed" and desk.health()[0]
    assert (maker.folder / "starts.log").read_text().count("begun") == 1


def test_a_server_that_ends_gives_its_job_back(slow):
    with served(slow) as (address, desk):
        id = client_of(address).videos.create(prompt="a").id
        while desk.worker.progress(id) == 0:
            time.sleep(0.01)
    slow.go.set()
    with served(slow) as (address, desk):
        assert ended(client_of(address), id).status == "completed"
        assert desk.queue.get(id).starts == 1


def test_ended_videos_are_removed_after_their_time(small_model, tmp_path):
    maker = StandIn(small_model / "sample.json", tmp_path / "videos")
    with served(maker, keep_s=3600.0) as (address, desk):
        client = client_of(address)
        old, kept = (client.videos.create(prompt=prompt).id for prompt in "ab")
        for id in (old, kept):
            state = ended(client, id)
            assert state.expires_at == int(desk.queue.get(id).finished + 3600)
        desk.queue._rows.execute("UPDATE jobs SET finished = finished - 4000 WHERE id = ?", (old,))
        ended(client, client.videos.create(prompt="c").id)  # the worker looks between two jobs
        until = time.monotonic() + 10
        while (maker.folder / f"{old}.mp4").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        assert [video.id for video in client.videos.list(order="asc")][0] == kept
        assert (maker.folder / f"{kept}.mp4").exists()


def test_a_connection_that_sends_no_whole_head_is_closed(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(PatientProtocol, "head_s", 0.3)
    with served(StandIn(small_model / "sample.json", tmp_path / "videos")) as (address, _):
        port = int(address.rpartition(":")[2])
        silent, slow, patient = (socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(3))
        patient.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in patient.recv(4096)
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: local")
        began = time.monotonic()
        for one in (silent, slow):
            assert one.recv(4096) == b""
        assert time.monotonic() - began < 5
        body = b'{"prompt": "a"}'
        with socket.create_connection(
            ("127.0.0.1", port), timeout=10
        ) as late:  # a whole head, and a body that takes longer
            head = f"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            late.sendall(head.encode())
            time.sleep(0.5)
            late.sendall(body)
            assert b"200 OK" in late.recv(4096)
        for one in (silent, slow, patient):
            one.close()

"""What stands behind the page: the same samples as a job's, and no file but finished samples."""

import dataclasses

import numpy as np
import pytest
from sampling_world import OVERFLOWS, overflowing

from mindspeed_mm.config import resolve
from mindspeed_mm.config.sample import PromptConfig
from mindspeed_mm.errors import ConfigError, SamplingError
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.sampling.pipeline import T2VPipeline
from mindspeed_mm.sampling.provenance import weights_of
from mindspeed_mm.sampling.writer import write_video
from mindspeed_mm.web.studio import Done, Progress, Studio

LINE = PromptConfig(prompt="a blue square", negative_prompt="blurry", seed=5)


@pytest.fixture(scope="module")
def config(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "samples"
    flags = ["--device", "cpu", "--mm-model", str(small_model / "sample.json"), "--save-path", str(folder)]
    return resolve.serve_config(flags, world_size=1)


@pytest.fixture(scope="module")
def studio(config) -> Studio:
    pipeline = T2VPipeline.from_config(config.sample.model)
    return Studio(config.sample, pipeline, CpuPlatform(), weights_of(config.sample))


def test_a_page_makes_what_a_notebook_and_a_job_make(studio, tmp_path):
    *progress, done = studio.make(LINE)
    assert [news.number for news in progress] == [1, 2, 3, 4]
    assert all(isinstance(news, Progress) and news.total == 4 for news in progress)
    assert progress[0].preview.shape == (32, 32, 3) and progress[-1].preview is None
    assert isinstance(done, Done)
    frames = studio.pipeline("a blue square", seed=5, negative_prompt="blurry", progress=False)
    write_video(frames, tmp_path / "notebook.mp4", 24)
    assert studio.file(done.entry["file"]).read_bytes() == (tmp_path / "notebook.mp4").read_bytes()
    assert done.entry["sample"]["seed"] == 5 and done.entry["timing"]["s_per_step"] > 0
    assert studio.history(10)[0] == done.entry


def test_without_a_seed_one_is_drawn_and_recorded(studio):
    seeds = {list(studio.make(dataclasses.replace(LINE, seed=None)))[-1].entry["sample"]["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_an_impossible_size_is_refused_before_work(studio):
    before = len(studio.history(100))
    with pytest.raises(ConfigError, match="10 frames"):
        next(studio.make(dataclasses.replace(LINE, input_size=(10, 32, 32))))
    assert len(studio.history(100)) == before


def test_stopping_and_failing_leave_the_studio_ready(studio, monkeypatch):
    overflowing(monkeypatch)
    work = studio.make(LINE)
    assert next(work).number == 1
    work.close()
    with pytest.raises(SamplingError, match="step 2 of 4"):
        list(studio.make(dataclasses.replace(LINE, guidance_scale=OVERFLOWS)))
    assert isinstance(list(studio.make(LINE))[-1], Done)


def test_only_samples_of_the_folder_are_files(studio, tmp_path):
    folder = studio.archive.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "notes.txt").write_text("private")
    (folder.parent / "outside.mp4").write_text("private")
    (folder / "link.mp4").symlink_to(folder.parent / "outside.mp4")
    for name in ("notes.txt", "../outside.mp4", "link.mp4", "/etc/passwd", "none.mp4", "", ".", "a/b.mp4"):
        assert studio.file(name) is None, name


def test_the_server_has_no_other_door_to_files(studio, config):
    pytest.importorskip("gradio", reason="the web page's extra is not installed")
    from starlette.testclient import TestClient

    from mindspeed_mm.web.app import build_app

    name = list(studio.make(LINE))[-1].entry["file"]
    outside = studio.archive.folder.parent / "secret.mp4"
    outside.write_text("private")
    with TestClient(build_app(studio, config), base_url="http://127.0.0.1") as client:
        assert client.get("/").status_code == 200
        answer = client.get(f"/samples/{name}", headers={"Range": "bytes=4-7"})
        assert (answer.status_code, answer.content) == (206, b"ftyp")
        assert client.get(f"/samples/{name.replace('.mp4', '.json')}").json()["status"] == "done"
        for path in (
            "/samples/..%2fsecret.mp4",
            "/samples/%2fetc%2fpasswd",
            f"/gradio_api/file={outside}",
            f"/gradio_api/file={studio.archive.folder / name}",
            "/gradio_api/file=http://127.0.0.1/",
            f"/gradio_api/file/{outside}",
            f"/file={outside}",
            f"//gradio_api/file={outside}",
            f"/gradio_api/../gradio_api/file={outside}",
        ):
            answer = client.get(path)
            assert answer.status_code in (404, 405), (path, answer.status_code)
            assert b"private" not in answer.content
        upload = client.post("/gradio_api/upload", files={"files": ("x.txt", b"x" * 100)})
        assert upload.status_code == 404
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 400


def test_without_gradio_the_error_says_what_to_install(monkeypatch, config):
    from mindspeed_mm.web import app

    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the web page needs Gradio, which is not installed: pip install"):
        app.serve(config, CpuPlatform(), None)


def test_a_taken_port_is_named(config):
    from mindspeed_mm.serving.listening import listen

    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: Address already in use"):
            listen("127.0.0.1", port)


def test_the_page_runs_in_one_process_and_on_this_machine_by_default(config, small_model):
    assert (config.host, config.port) == ("127.0.0.1", 7860)
    flags = ["--mm-model", str(small_model / "sample.json")]
    with pytest.raises(ConfigError, match="the web page runs in one process"):
        resolve.serve_config(flags, world_size=2)
    with pytest.raises(ConfigError, match="--port 70000"):
        resolve.serve_config([*flags, "--port", "70000"], world_size=1)


def test_a_prompt_is_shown_as_it_is(studio):
    pytest.importorskip("gradio", reason="the web page's extra is not installed")
    from mindspeed_mm.web.page import escape

    assert escape("<b>${1}{{x}}&") == "&lt;b&gt;&#36;&#123;1&#125;&#123;&#123;x&#125;&#125;&amp;"
    assert np.all([mark not in escape("<script>${a}") for mark in "<${"])


def test_a_prompt_that_cleaning_empties_is_said_in_the_log_on_the_page_and_in_a_notebook(studio, caplog):
    pytest.importorskip("gradio", reason="the web page's extra is not installed")
    from mindspeed_mm.web.page import _make

    words = "cleaning removes Chinese, for which the published T5 has no pieces: translate the texts"
    *_, (status, figure, _) = _make(studio, "", ("一只猫在草地上", "", 2, 3.0, 5, 1, 32, 32))
    assert words in status and 'role="alert"' in status and "一只猫在草地上" in figure
    assert words in caplog.text
    caplog.clear()
    studio.pipeline("一只猫在草地上", size=(1, 32, 32), steps=2, progress=False)
    assert words in caplog.text
    *_, (status, _, _) = _make(studio, "", ("a cat in the grass", "", 2, 3.0, 5, 1, 32, 32))
    assert status == ""

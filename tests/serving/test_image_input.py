"""`input_reference`: an image as a file or a data URL is the first frame, and never leaves its folder."""

import base64
import dataclasses

import numpy as np
import openai
import pytest
from api_server import client_of, ended, served
from openai.types import Video
from PIL import Image
from sampling_parts import IMAGES, pipeline, sample_model
from stand_in import StandIn

from mindspeed_mm.config.image_inputs import ImageInputs
from mindspeed_mm.config.launch import LaunchConfig
from mindspeed_mm.config.sample import SampleConfig
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.sampling.writer import write_video
from mindspeed_mm.serving.maker import SampleMaker


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "wide.png"
    rows, columns = np.mgrid[0:64, 0:128]
    Image.fromarray(np.stack([rows * 3, columns, rows + columns], -1).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    model = dataclasses.replace(
        sample_model((9, 64, 64), IMAGES), save_path=str(tmp_path_factory.mktemp("images") / "videos")
    )
    return SampleMaker(SampleConfig(launch=LaunchConfig(), model=model), pipeline(predictor=IMAGES), CpuPlatform(), {})


@pytest.fixture(scope="module")
def client(maker):
    with served(maker) as (address, _):
        yield client_of(address)


def data_url(picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def test_a_file_and_a_data_url_give_what_a_notebook_gives(client, maker, picture, tmp_path):
    body = {"prompt": "a red circle", "seed": 3}
    as_json = [{**body, "input_reference": one} for one in (data_url(picture), {"image_url": data_url(picture)})]
    videos = [
        client.videos.create(prompt="a red circle", input_reference=picture, extra_body={"seed": 3}),
        *(client.post("/videos", body=body, cast_to=Video) for body in as_json),
    ]
    frames = maker.pipeline("a red circle", seed=3, image=picture, size=(9, 48, 96), progress=False)
    write_video(frames, tmp_path / "notebook.mp4", 24)
    for video in videos:
        assert video.size == "96x48"  # the picture's aspect ratio, about as many pixels as 64x64
        assert ended(client, video.id).status == "completed"
        assert client.videos.download_content(video.id).read() == (tmp_path / "notebook.mp4").read_bytes()
        assert [path.name for path in maker.inputs.iterdir() if path.name.startswith(f"{video.id}.")] == [
            f"{video.id}.image.png"
        ]
        client.videos.delete(video.id)
    assert not list(maker.inputs.iterdir())


def test_a_size_that_is_asked_for_counts(client, maker, picture):
    video = client.videos.create(prompt="a", input_reference=picture, size="32x64", seconds="0.1")
    assert (video.size, video.frames) == ("32x64", 1)
    client.videos.delete(video.id)


def test_a_last_image_is_the_last_frame(client, maker, picture, tmp_path):
    as_file = {"prompt": "a red circle", "seed": "3"}
    opened = {"input_reference": picture.read_bytes(), "last_image": picture.read_bytes()}
    both = client.post(
        "/videos", body=as_file, files={name: (f"{name}.png", one) for name, one in opened.items()}, cast_to=Video,
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )  # fmt: skip
    alone = client.videos.create(prompt="a red circle", extra_body={"seed": 3, "last_image": data_url(picture)})
    for video, images in (
        (both, ImageInputs(image=str(picture), last_image=str(picture))),
        (alone, ImageInputs(last_image=str(picture))),
    ):
        assert (video.size, ended(client, video.id).status) == ("96x48", "completed")
        frames = maker.pipeline("a red circle", seed=3, image=images, size=(9, 48, 96), progress=False)
        write_video(frames, tmp_path / "notebook.mp4", 24)
        assert client.videos.download_content(video.id).read() == (tmp_path / "notebook.mp4").read_bytes()
        client.videos.delete(video.id)
    assert not list(maker.inputs.iterdir())
    with pytest.raises(openai.UnprocessableEntityError, match="last_image: send PNG") as caught:
        client.videos.create(
            prompt="a", input_reference=picture, extra_body={"last_image": "data:image/png;base64,AAAA"}
        )
    assert caught.value.body["param"] == "last_image" and not list(maker.inputs.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GIF89a" + bytes(50), "send PNG, JPEG or WebP"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "input_reference"),
        (b"", "send PNG, JPEG or WebP"),
    ],
    ids=["gif", "damaged", "empty"],
)
def test_what_is_no_image_is_refused_and_leaves_nothing(client, maker, content, words):
    before = set(maker.inputs.glob("*"))
    with pytest.raises(openai.UnprocessableEntityError, match=words) as caught:
        client.videos.create(prompt="a", input_reference=("x.png", content))
    assert str(maker.folder) not in str(caught.value) and caught.value.body["param"] == "input_reference"
    assert set(maker.inputs.glob("*")) <= before


def test_a_model_without_images_says_so_and_an_orphan_is_swept(small_model, tmp_path, picture):
    stand_in = StandIn(small_model / "sample.json", tmp_path / "videos")
    with served(stand_in) as (address, desk):
        with pytest.raises(openai.UnprocessableEntityError, match="the predictor takes no images"):
            client_of(address).videos.create(prompt="a", input_reference=picture)
        assert not list(stand_in.inputs.iterdir())
        (stand_in.inputs / "video_gone.png").write_bytes(b"left by a killed server")
        desk.sweep()
        assert not list(stand_in.inputs.iterdir())

"""`mindspeed-mm evaluate` as it is called: two folders, a page of both, JSON on stdout, mistakes in one line."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "evaluation"), str(ROOT / "tests" / "e2e")]

from made_videos import moving, write_folder  # noqa: E402
from programs import run  # noqa: E402

from mindspeed_mm.config.evaluation import evaluate_config  # noqa: E402
from mindspeed_mm.errors import ConfigError  # noqa: E402

PROMPTS = ["a <b>slow</b> square", "a fast square"]


def evaluate(*flags):
    return run("mindspeed_mm/__main__.py", ["evaluate", "--device", "cpu", *flags], device=None)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Outputs of an evaluation of two folders, and the first one."""
    folder = tmp_path_factory.mktemp("runs")
    slow, fast = (
        write_folder(folder / name, dict(zip(PROMPTS, videos, strict=True)))
        for name, videos in {"slow run": (moving(0.5), moving(1)), "fast": (moving(1), moving(2))}.items()
    )
    (folder / "mine.py").write_text(
        "def judge(frames, prompt):\n    return {'is fast': float(('fast' in prompt) == bool(frames[8, 24, 28, 0] > 100))}\n"
    )
    result = evaluate(
        "--videos", slow, "--against", fast, "--judge", folder / "mine.py", "--shuffled", 4, "--vbench", "--json"
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result, slow, fast


def test_json_is_all_of_stdout_and_is_kept(compared):
    result, slow, fast = compared
    report = json.loads(result.stdout)
    assert report == json.loads((slow / "evaluation" / "evaluation.json").read_text())
    first, second = report["runs"]
    assert (first["folder"], first["videos"]) == (str(slow), 2)
    assert second["means"]["motion"] > 1.5 * first["means"]["motion"]
    assert [one["seed"] for one in first["samples"]] == [7, 8]
    assert first["judge"] == {"is fast": 100, "all": 100} and second["judge"]["all"] == 50
    assert first["judge, shuffled prompts"]["all"] < 100
    mean = sum(one["measures"]["motion"] for one in first["samples"]) / 2
    assert first["means"]["motion"] == pytest.approx(mean)
    assert (slow / "evaluation" / "vbench" / "full_info.json").is_file()
    assert "wrote" in result.stderr


def test_the_page_names_both_videos_of_a_prompt_from_where_it_lies(compared):
    _, slow, fast = compared
    page = slow / "evaluation" / "compare.html"
    text = page.read_text()
    addresses = re.findall(r'<video src="([^"]+)"', text)
    assert addresses == [
        "../video_000000.mp4", "../../fast/video_000000.mp4", "../video_000001.mp4", "../../fast/video_000001.mp4"
    ]  # fmt: skip
    assert all((page.parent / address).is_file() for address in addresses)
    assert "a &lt;b&gt;slow&lt;/b&gt; square" in text and "<b>slow" not in text
    assert "FRAME = 0.125" in text


def refusal(*flags) -> str:
    with pytest.raises(ConfigError) as error:
        evaluate_config([str(flag) for flag in flags], 1)
    return str(error.value)


def test_mistakes_are_said_before_any_work(tmp_path):
    assert "nothing to evaluate: give --videos" in refusal()
    assert "--videos" in refusal("--videos", tmp_path / "none")
    assert "no such directory" in refusal("--videos", tmp_path / "none")
    assert "FVD needs both" in refusal("--videos", tmp_path, "--reference", tmp_path)
    assert "only with --videos" in refusal("--mm-model", __file__, "--mm-data", __file__, "--judge", "a:b")
    assert "needs both --mm-model and --mm-data" in refusal("--mm-model", __file__)
    assert "only with --load" in refusal("--mm-model", __file__, "--mm-data", __file__, "--ema")

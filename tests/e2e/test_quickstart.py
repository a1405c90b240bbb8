"""The quickstart's one-minute path, as a user starts it."""

import contextlib
import json
import os
import re
import signal
import subprocess

from PIL import Image
from programs import ROOT, descendants, environment


def test_the_fast_path_trains_samples_and_judges(tmp_path, warm_python):
    out = tmp_path / "out"
    settings = {
        "FAST": "1",
        "OUT": str(out),
        "VIRTUAL_ENV": str(warm_python.parents[1]),
    }
    with subprocess.Popen(
        ["bash", str(ROOT / "examples" / "quickstart" / "run.sh")],
        env={**environment(), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            for pid in [process.pid, *descendants(process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, output[-3000:] + errors[-3000:]
    for part in (
        "the judge on every tenth of the clips themselves",
        "do the videos obey their prompts",
        "with shuffled prompts",
    ):
        section = output[output.index(part) :]
        assert re.search(r"^colour \d+\.\d\ndirection \d+\.\d\nshape \d+\.\d\n", section, re.MULTILINE), section
    assert re.search(r"video: encoding waited for clips in \d+% of the time \(1 workers", output + errors)
    clips = output[output.index("the judge on") :]
    assert clips.splitlines()[1:4] == ["colour 100.0", "direction 100.0", "shape 100.0"]
    report = json.loads((out / "score.json").read_text())
    assert [row["unseen"] for row in report["videos"]] == [False, False, True]
    assert {"colour", "unseen shape"} <= set(report["scores"])
    assert Image.open(out / "judged.png").width > 300
    assert (out / "samples" / "index.html").is_file()

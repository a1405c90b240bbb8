"""The quickstart's one-minute path, as a user starts it."""

import json
import os
import re
import subprocess
import sys

from PIL import Image
from programs import ROOT, environment


def test_the_fast_path_trains_samples_and_judges(tmp_path):
    out = tmp_path / "out"
    settings = {
        "FAST": "1",
        "OUT": str(out),
        "VIRTUAL_ENV": sys.prefix,
        "MASTER_PORT": str(20000 + os.getpid() % 20000),
    }
    result = subprocess.run(
        ["bash", str(ROOT / "examples" / "quickstart" / "run.sh")],
        env={**environment(), **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for part in ("the judge on the clips themselves", "do the videos obey their prompts", "with shuffled prompts"):
        section = result.stdout[result.stdout.index(part) :]
        assert re.search(r"^colour \d+\.\d\ndirection \d+\.\d\nshape \d+\.\d\n", section, re.MULTILINE), section
    clips = result.stdout[result.stdout.index("the judge on") :]
    assert clips.splitlines()[1:4] == ["colour 100.0", "direction 100.0", "shape 100.0"]
    report = json.loads((out / "score.json").read_text())
    assert [row["unseen"] for row in report["videos"]] == [False, False, True]
    assert {"colour", "unseen shape"} <= set(report["scores"])
    assert Image.open(out / "judged.png").width > 300
    assert (out / "samples" / "index.html").is_file()

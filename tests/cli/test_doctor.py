"""`mindspeed-mm doctor`: each line has a state, what is wrong says what to do, the exit code is for scripts."""

import re
from pathlib import Path

import pytest

from mindspeed_mm.cli import doctor as cli

ROOT = Path(__file__).resolve().parents[2]


def test_a_machine_that_runs_these_tests_has_no_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as ending:
        cli.doctor(["--folders", str(tmp_path / "new" / "run")])
    lines = capsys.readouterr().out.splitlines()
    assert ending.value.code == 0, lines
    assert all(line.split()[0] in (cli.OK, cli.WARNING) for line in lines)
    subjects = {line[9:23].strip() for line in lines}
    assert {"python", "torch", "open files", "decoders", "encoder", "fonts", "space", "disk"} <= subjects
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(capsys):
    with pytest.raises(SystemExit) as ending:
        cli.doctor(["--folders", "/proc/run"])
    assert ending.value.code == 1
    assert re.search(r"^error    disk +/proc/run: cannot be written", capsys.readouterr().out, re.M)


def test_what_fails_itself_is_an_error(monkeypatch):
    monkeypatch.setattr(cli, "_fonts", lambda: 1 / 0)
    findings = list(cli.examine(()))
    assert [finding.state for finding in findings].count(cli.ERROR) == 1
    assert "cannot be examined: division by zero" in str(findings[-1])


def test_torch_and_torch_npu_pair():
    assert [finding.state for finding in cli.pairing("2.13.0+cpu", "2.13.0")] == [cli.OK]
    (wrong,) = cli.pairing("2.12.0", "2.13.0")
    assert str(wrong) == "error    torch_npu      2.13.0 with torch 2.12.0; this torch pairs with 2.12.0.post3"


def test_the_pairs_are_those_of_the_docs():
    text = (ROOT / "docs" / "ascend.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.post]+) \| [^|]*?([\d.]+) \|", text, re.M)
    assert rows == list(cli.TRIPLES)


def test_cann_and_torch_npu_pair(tmp_path):
    driver = tmp_path / "version.info"
    driver.write_text("Version=25.2.0\n")
    info = tmp_path / "latest" / "aarch64-linux" / "ascend_toolkit_install.info"
    info.parent.mkdir(parents=True)

    def found(version: str | None) -> list[str]:
        return [str(finding) for finding in cli.cann(version, tmp_path / "latest", driver)]

    assert found(None) == []
    assert found("2.9.0.post2")[0].startswith("error    CANN           no toolkit in ")
    info.write_text("package_name=Ascend-cann-toolkit\nversion=9.0.0\n")
    assert found("2.9.0.post2") == ["ok       CANN           9.0.0", "ok       NPU driver     25.2.0"]
    assert found("2.7.1.post2")[0] == (
        "error    CANN           9.0.0 with torch_npu 2.7.1.post2; this torch_npu pairs with 8.5.0"
    )

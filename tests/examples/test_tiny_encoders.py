"""The quickstart's text encoders."""

import sys
from pathlib import Path

from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "quickstart"))

from tiny_encoders import write_encoders  # noqa: E402

TEXTS = [f"a {colour} circle moving left on a grey background" for colour in ("red", "green", "blue", "purple")]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_seed_gives_the_same_files_each_time(tmp_path):
    write_encoders(tmp_path / "one", TEXTS)
    write_encoders(tmp_path / "two", TEXTS)
    assert len(files(tmp_path / "one")) >= 8
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_every_word_is_a_token_and_other_words_are_spelled(tmp_path):
    _, clip = write_encoders(tmp_path, TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(clip)
    assert tokenizer.tokenize(TEXTS[0]) == [f"{word}</w>" for word in TEXTS[0].split()]
    assert tokenizer.tokenize("moved") == ["mov", "e", "d</w>"]

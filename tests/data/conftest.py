"""Fixtures of the data tests."""

import json
from pathlib import Path

import pytest
import sentencepiece
from data_helpers import row, write_clip, write_list
from tiny_encoders import write_encoders

_TEXTS = [
    "a cat plays with a ball in the garden",
    "the quick brown fox jumps over the lazy dog",
    "waves break on the shore at sunset while two people walk along a busy street in the rain 0123456789",
]


@pytest.fixture(scope="session", params=["tokenizers", "spm"])
def encoder_folder(request, tmp_path_factory) -> Path:
    """Folder with t5 and clip; T5's tokenizer once as tokenizer.json, once as spiece.model only, as published."""
    folder = tmp_path_factory.mktemp(f"encoders_{request.param}")
    write_encoders(folder, _TEXTS)
    if request.param == "spm":
        _as_published(folder / "t5")
    return folder


def _as_published(t5: Path) -> None:
    """Put a sentencepiece model in the place of tokenizer.json."""
    (t5 / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXTS * 50),
        model_prefix=str(t5 / "spiece"),
        vocab_size=120,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (t5 / "spiece.vocab").unlink()
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {"model_max_length": 512, "extra_ids": 100, "tokenizer_class": "T5Tokenizer", **special}
    (t5 / "tokenizer_config.json").write_text(json.dumps(settings))
    (t5 / "special_tokens_map.json").write_text(json.dumps(special))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """Twelve clips of 12 frames 64x128, numbered 0 to 11, 20 to 31, 40 to 51 ..., listed in data.txt."""
    folder = tmp_path_factory.mktemp("clips")
    names = [f"{number:02}.mp4" for number in range(12)]
    for number, name in enumerate(names):
        write_clip(folder / name, 12, first=20 * number)
    write_list(folder, [row(name, num_frames=12) for name in names])
    return folder

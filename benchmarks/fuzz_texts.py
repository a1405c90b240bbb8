"""Doors of `benchmarks/fuzz.py` for texts: configs, flags, lists, prompts."""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

from fuzz_damage import HARMLESS, Try, judged, mutated, text_mutated


def config_door(folder: Path) -> Try:
    import config_files

    from mindspeed_mm.config import model_dialects
    from mindspeed_mm.config.sample import SampleModelConfig
    from mindspeed_mm.schema import build, check, read_json

    whole = json.dumps(config_files.sample_block(folder), indent=1)

    def attempt(chance: random.Random) -> str:
        path = folder / "sample.json"
        path.write_bytes(text_mutated(whole, chance))
        check(build(SampleModelConfig, model_dialects.sample_node(read_json(path))))
        return HARMLESS

    return attempt


_VALUES = (
    "0", "-1", "1", "x", "", "nan", "inf", "1e999", "9" * 400, "0.5", "../..", "\u0663", "--", "-", "\ud800", "\0",
)  # fmt: skip


def flags_door(folder: Path) -> Try:
    from mindspeed_mm.config import arguments
    from mindspeed_mm.config.run import RunFlags
    from mindspeed_mm.schema import check
    from mindspeed_mm.schema.command import flags_of

    names = sorted(flag.name for flag in flags_of(RunFlags))

    def attempt(chance: random.Random) -> str:
        words = ["--mm-data", "a.json", "--mm-model", "b.json", "--train-iters", "1", "--lr", "1e-3"]
        for _ in range(chance.randrange(1, 4)):
            words += [chance.choice(names), chance.choice(_VALUES)][: chance.choice((1, 2, 2, 2))]
        check(arguments.TRAIN.parse(words).values)
        return HARMLESS

    return attempt


_ROW = {
    "path": "a.mp4",
    "cap": ["a red circle"],
    "resolution": {"height": 32, "width": 48},
    "fps": 24.0,
    "num_frames": 97,
    "cut": [0, 50],
    "crop": [0, 32, 0, 32],
    "aesthetic": 5.5,
}
_TABLE = ("path,caption,fps,num_frames,height,width", "a.mp4,a red circle,24,97,32,48")


def rows_door(folder: Path) -> Try:
    """Lists of all formats that are texts, gzipped lists and tar shards."""
    from mindspeed_mm.data.lists.sources import read_annotation

    lines = f"{json.dumps(_ROW)}\n" * 3
    texts = {
        "json": json.dumps([_ROW, _ROW], indent=1),
        "jsonl": lines,
        "csv": "\n".join(_TABLE[:1] + _TABLE[1:] * 2),
        "tsv": "\n".join(_TABLE[:1] + _TABLE[1:] * 2).replace(",", "\t"),
    }
    files = {"jsonl.gz": gzip.compress(lines.encode()), "tar": _shard()}

    def attempt(chance: random.Random) -> str:
        suffix = chance.choice([*texts, *files])
        path = folder / f"list.{suffix}"
        path.write_bytes(text_mutated(texts[suffix], chance) if suffix in texts else mutated(files[suffix], chance))
        rows = read_annotation(path)
        return judged(all(row.num_frames is None or 0 <= row.num_frames < 2**53 for row in rows))

    return attempt


def _shard() -> bytes:
    """A tar of two samples."""
    content = io.BytesIO()
    facts = {key: value for key, value in _ROW.items() if key not in ("path", "cap")}
    with tarfile.open(fileobj=content, mode="w") as tar:
        for number in range(2):
            for suffix, data in (("mp4", b"x" * 700), ("txt", b"a red circle"), ("json", json.dumps(facts).encode())):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def prompts_door(folder: Path) -> Try:
    from mindspeed_mm.sampling.prompt_files import read_prompts
    from mindspeed_mm.sampling.prompts import compose

    line = {"prompt": "a red circle", "seed": 5, "input_size": [9, 32, 32], "guidance_scale": 3.0, "steps": 4}
    texts = {"jsonl": f"{json.dumps(line)}\n" * 3, "txt": "a red circle\n# a comment\n\nand a blue one\n"}

    def attempt(chance: random.Random) -> str:
        suffix = chance.choice(list(texts))
        path = folder / f"prompts.{suffix}"
        path.write_bytes(text_mutated(texts[suffix], chance))
        found = read_prompts(str(path))
        return judged(all("\ufeff" not in compose(one.prompt, "v1.5").positive for one in found))

    return attempt

#!/usr/bin/env python
"""Feeds mutated files and requests to every door of the programs, and counts what happens to them.

    python benchmarks/fuzz.py [--minutes 10] [--seed 0] [--only DOOR ...]

Every input is made from the seed, its door and its number alone; the doors take turns until the time is over. Columns:
`refused`: an error of ours in one line; `harmless`: read, and the values are those of the undamaged file (of texts, which
may well mean another thing: every value is within its rule); `silent`: read, and other values came out; `traceback`:
anything else. The goal of the last two is 0; exit code 1 if it is missed. Damage to compressed video that no decoder can
notice is measured by `benchmarks/damage.py`; here a clip is silent only if its frames have another shape.
"""

import argparse
import collections
import contextlib
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
for _part in ("tests/config", "tests", "benchmarks", ""):
    sys.path.insert(0, str(ROOT / _part))

import torch  # noqa: E402
from common import table  # noqa: E402

from mindspeed_mm.errors import MMError  # noqa: E402

OUTCOMES = ("refused", "harmless", "silent", "traceback")
# One try: makes an input in the folder from the random numbers, reads it; True if what was read is right.
Try = Callable[[random.Random], bool]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=DOORS, default=list(DOORS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, examples = run(Path(folder), options.seed, options.only, seconds=60 * options.minutes)
    rows = [[door, sum(found.values()), *(found[outcome] for outcome in OUTCOMES)] for door, found in counts.items()]
    print(table(["door", "tried", *OUTCOMES], rows))
    for example in examples:
        print(f"\n{example}")
    return int(bool(examples))


def run(
    folder: Path, seed: int, doors: list[str], *, seconds: float = float("inf"), tries: int = sys.maxsize
) -> tuple[dict[str, collections.Counter], list[str]]:
    """(outcomes by door, what to print of the silent ones and the tracebacks), after so many tries a door or so long."""
    ready = {}
    for door in doors:
        (folder / door).mkdir()
        ready[door] = DOORS[door](folder / door)
    counts = {door: collections.Counter() for door in doors}
    examples: list[str] = []
    for door, attempt in ready.items():
        with unchanged():
            outcome, words = judged(attempt, random.Random(0))
        if outcome != "harmless" and door not in ("flags", "web"):  # whose inputs are odd by themselves
            examples.append(f"{door}: what is not damaged is {outcome}\n{words}")
    end = time.monotonic() + seconds
    for number in range(tries):
        for door, attempt in ready.items():
            if time.monotonic() > end:
                return counts, examples
            outcome, words = judged(attempt, random.Random(f"{seed} {door} {number}"))
            counts[door][outcome] += 1
            if outcome in ("silent", "traceback") and counts[door][outcome] <= 3:
                examples.append(f"{door} {number}: {outcome}\n{words}")
    return counts, examples


def judged(attempt: Try, chance: random.Random) -> tuple[str, str]:
    try:
        return ("harmless" if attempt(chance) else "silent"), ""
    except MMError as error:
        return ("refused", str(error)) if "\n" not in str(error) else ("traceback", f"several lines: {error}")
    except Exception:
        return "traceback", traceback.format_exc(limit=-6)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few changes of the kinds that happen: bits, bytes, pieces lost, doubled, moved, cut off."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at, length = chance.randrange(len(data) + 1), chance.choice((1, 2, 8, 64))
        kind = chance.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + length] = chance.randbytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            other = chance.randrange(len(data) + 1)
            data[at : at + length] = data[other : other + length]
        else:
            del data[at:]
    return bytes(data)


_WORDS = (
    '"', "{", "}", "[", "]", ",", ":", "null", "true", "-1", "0", "1e999", "NaN", "1" * 400, "\\ud800", "\u2028", "\ufeff",
    "[" * 2000, "C:\\models", "../", "\x00", "2**64", "\u0663", "1.5", '""',
)  # fmt: skip


@contextlib.contextmanager
def unchanged():
    """Inside, inputs are not damaged: whoever refuses those too proves nothing."""
    with mock.patch.multiple(
        sys.modules[__name__], mutated=lambda data, _: data, text_mutated=lambda text, _: text.encode()
    ):
        yield


def text_mutated(text: str, chance: random.Random) -> bytes:
    """As `mutated`, or with something odd in the place of a word."""
    if chance.random() < 0.4:
        return mutated(text.encode(), chance)
    at = chance.randrange(len(text))
    return (text[:at] + chance.choice(_WORDS) + text[at + chance.choice((0, 1, 5)) :]).encode("utf-8", "surrogatepass")


# ------------------------------------------------------------------------------------------------------------------- texts


def config_door(folder: Path) -> Try:
    import config_files

    from mindspeed_mm.config import model_dialects
    from mindspeed_mm.config.sample import SampleModelConfig
    from mindspeed_mm.schema import build, check, read_json

    whole = json.dumps(config_files.sample_block(folder), indent=1)

    def attempt(chance: random.Random) -> bool:
        path = folder / "sample.json"
        path.write_bytes(text_mutated(whole, chance))
        check(build(SampleModelConfig, model_dialects.sample_node(read_json(path))))
        return True

    return attempt


def flags_door(folder: Path) -> Try:
    from mindspeed_mm.config import arguments
    from mindspeed_mm.config.run import RunFlags
    from mindspeed_mm.schema import check
    from mindspeed_mm.schema.command import flags_of

    names = sorted(flag.name for flag in flags_of(RunFlags))
    values = [
        "0",
        "-1",
        "1",
        "x",
        "",
        "nan",
        "inf",
        "1e999",
        "9" * 400,
        "0.5",
        "../..",
        "\u0663",
        "--",
        "-",
        "\ud800",
        "\0",
    ]

    def attempt(chance: random.Random) -> bool:
        words = ["--mm-data", "a.json", "--mm-model", "b.json", "--train-iters", "1", "--lr", "1e-3"]
        for _ in range(chance.randrange(1, 4)):
            words += [chance.choice(names), chance.choice(values)][: chance.choice((1, 2, 2, 2))]
        check(arguments.parse_train(words).values)
        return True

    return attempt


def rows_door(folder: Path) -> Try:
    from mindspeed_mm.data.lists.sources import read_annotation

    row = {
        "path": "a.mp4",
        "cap": ["a red circle"],
        "resolution": {"height": 32, "width": 48},
        "fps": 24.0,
        "num_frames": 97,
    }
    row |= {"cut": [0, 50], "crop": [0, 32, 0, 32], "aesthetic": 5.5}
    texts = {
        "json": json.dumps([row, row], indent=1),
        "jsonl": f"{json.dumps(row)}\n" * 3,
        "csv": "path,caption,fps,num_frames,height,width\na.mp4,a red circle,24,97,32,48\n" * 2,
    }

    def attempt(chance: random.Random) -> bool:
        suffix = chance.choice(list(texts))
        path = folder / f"list.{suffix}"
        path.write_bytes(text_mutated(texts[suffix], chance))
        rows = read_annotation(path)
        return all(row.num_frames is None or 0 <= row.num_frames < 2**53 for row in rows)

    return attempt


def prompts_door(folder: Path) -> Try:
    from mindspeed_mm.sampling.prompt_files import read_prompts
    from mindspeed_mm.sampling.prompts import compose

    line = {"prompt": "a red circle", "seed": 5, "input_size": [9, 32, 32], "guidance_scale": 3.0, "steps": 4}
    texts = {"jsonl": f"{json.dumps(line)}\n" * 3, "txt": "a red circle\n# a comment\n\nand a blue one\n"}

    def attempt(chance: random.Random) -> bool:
        suffix = chance.choice(list(texts))
        path = folder / f"prompts.{suffix}"
        path.write_bytes(text_mutated(texts[suffix], chance))
        found = read_prompts(str(path))
        return all("\ufeff" not in compose(one.prompt, "v1.5").positive for one in found)

    return attempt


# ------------------------------------------------------------------------------------------------------------------- media


def clips_door(folder: Path) -> Try:
    import av
    import numpy as np

    from mindspeed_mm.data.decode.readers import build_reader, read_clip

    whole = {}
    for suffix, codec in (("mp4", "libx264"), ("avi", "mpeg4")):
        with av.open(str(folder / f"whole.{suffix}"), "w") as file:
            stream = file.add_stream(codec, rate=8)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(12):
                pixels = np.full((48, 64, 3), 20 * number, np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            file.mux(stream.encode())
        whole[suffix] = (folder / f"whole.{suffix}").read_bytes()
    av.logging.set_level(av.logging.PANIC)

    def attempt(chance: random.Random) -> bool:
        suffix = chance.choice(list(whole))
        path = folder / f"clip.{suffix}"
        path.write_bytes(mutated(whole[suffix], chance))
        frames = read_clip(build_reader("decoder"), str(path), range(0, 12, 2))
        return frames.dtype == np.uint8 and frames.ndim == 4 and len(frames) == 6

    return attempt


def images_door(folder: Path) -> Try:
    import numpy as np
    from PIL import Image

    from mindspeed_mm.data.decode.images import read_image

    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()

    def attempt(chance: random.Random) -> bool:
        path = folder / "image.png"
        path.write_bytes(mutated(whole, chance))
        return np.array_equal(read_image(str(path))[0], pixels)

    return attempt


# ----------------------------------------------------------------------------------------------------------------- weights


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(40, 10, generator=generator) for name in ("w", "b", "n.deep")}


def weights_door(
    folder: Path, save: Callable[[Path], Path], changing: Callable[[Path], list[Path]], strict: bool
) -> Try:
    """save: writes `tensors` to a path that is read as weights; changing: the files that are mutated; strict: the format
    has checksums, so that other values are silent damage."""
    from mindspeed_mm.weights.sources import open_checkpoint

    place = save(folder)
    whole = {path: path.read_bytes() for path in changing(place)}
    wanted = tensors()

    def attempt(chance: random.Random) -> bool:
        path = chance.choice(sorted(whole))
        path.write_bytes(mutated(whole[path], chance))
        try:
            weights = open_checkpoint(place).weights(dim_of=lambda name: None)
            found = {name: weights.part(name) for name in weights}
        finally:
            path.write_bytes(whole[path])
        if found.keys() != wanted.keys():
            raise MMError("other names")  # as every network says that is loaded from them (`released.compare`)
        if any(found[name].shape != wanted[name].shape for name in wanted):
            return not strict and all(torch.isfinite(value).all() for value in found.values())
        return not strict or all(torch.equal(found[name], wanted[name]) for name in wanted)

    return attempt


def zip_door(folder: Path) -> Try:
    def save(folder: Path) -> Path:
        torch.save(tensors(), folder / "w.pt")
        return folder / "w.pt"

    return weights_door(folder, save, lambda path: [path], strict=True)


def safetensors_door(folder: Path) -> Try:
    """The format has no checksums: a changed value cannot be told, and a changed name is another name."""
    from safetensors.torch import save_file

    def save(folder: Path) -> Path:
        save_file(tensors(), folder / "w.safetensors")
        return folder / "w.safetensors"

    return weights_door(folder, save, lambda path: [path], strict=False)


def torch_dist_door(folder: Path) -> Try:
    import torch.distributed.checkpoint as dcp

    def save(folder: Path) -> Path:
        run = folder / "iter_0000003"
        dcp.save({f"model.{name}": value for name, value in tensors().items()}, checkpoint_id=run, no_dist=True)
        torch.save({"iteration": 3}, run / "state.pt")
        (run / "metadata.json").write_text("{}")
        return run

    return weights_door(
        folder, save, lambda run: [*run.glob("*.distcp"), run / ".metadata", run / "state.pt"], strict=True
    )


def encoders_door(folder: Path) -> Try:
    """Mutated config.json, tokenizer and weights of T5; safetensors have no checksums, so only shapes are judged."""
    from sampling_world import write_world

    from mindspeed_mm.config import model_dialects
    from mindspeed_mm.config.sample import SampleModelConfig
    from mindspeed_mm.sampling.residence import Residence
    from mindspeed_mm.sampling.text import PromptEncoder
    from mindspeed_mm.schema import build, read_json

    world = write_world(folder)
    config = build(SampleModelConfig, model_dialects.sample_node(read_json(world / "sample.json")))
    names = ("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors")
    whole = {world / "t5" / name: (world / "t5" / name).read_bytes() for name in names}

    def attempt(chance: random.Random) -> bool:
        path = chance.choice(sorted(whole))
        path.write_bytes(mutated(whole[path], chance))
        try:
            features = PromptEncoder.load(config, Residence(torch.device("cpu")))(["a red circle"])
        finally:
            path.write_bytes(whole[path])
        return features.sequence.shape[1:] == (512, 64) and bool(torch.isfinite(features.sequence).all())

    return attempt


# --------------------------------------------------------------------------------------------------------------------- web


def web_door(folder: Path) -> Try:
    """Requests to the page's server, of every method, path and body; refused is an answer from 400 to 499."""
    from sampling_world import write_world
    from starlette.testclient import TestClient

    from mindspeed_mm.config import resolve
    from mindspeed_mm.platforms.cpu import CpuPlatform
    from mindspeed_mm.sampling.pipeline import T2VPipeline
    from mindspeed_mm.sampling.provenance import weights_of
    from mindspeed_mm.web import limits
    from mindspeed_mm.web.app import build_app
    from mindspeed_mm.web.studio import Studio

    world = write_world(folder)
    flags = ["--device", "cpu", "--mm-model", str(world / "sample.json"), "--save-path", str(folder / "samples")]
    config = resolve.serve_config(flags, world_size=1)
    studio = Studio(
        config.sample, T2VPipeline.from_config(config.sample.model), CpuPlatform(), weights_of(config.sample)
    )
    client = TestClient(build_app(studio, config), base_url="http://127.0.0.1", raise_server_exceptions=True)
    paths = [
        "/",
        "/config",
        "/theme.css",
        "/samples/x.mp4",
        "/gradio_api/info",
        "/gradio_api/queue/join",
        "/gradio_api/cancel",
    ]
    paths += [
        "/gradio_api/reset",
        "/gradio_api/process_recording",
        "/gradio_api/upload",
        "/gradio_api/file=/etc/passwd",
    ]
    paths += [
        "/gradio_api/proxy=http://x/",
        "/gradio_api/vibe-edit",
        "/login",
        "/assets/x",
        "/static/x",
        "/svelte/x",
        "/monitoring",
    ]
    body = json.dumps(
        {"data": ["a", "b", 4, 3.0, None, 9, 32, 32], "session_hash": "s", "fn_index": 9, "event_id": "e"}
    )
    odd = [None, "", "x", -1, 0, 10**30, 0.5, float("nan"), float("inf"), True, [], {}, "\ud800", "a" * 10**5]

    def values(chance: random.Random) -> bool:
        sent = ["a", "b", 4, 3.0, None, 9, 32, 32]
        sent[chance.randrange(len(sent))] = chance.choice(odd)
        line = limits.line_of(*sent)
        return 1 <= line.num_inference_steps <= 200 and len(line.prompt) <= limits.MAX_CHARACTERS

    def attempt(chance: random.Random) -> bool:
        if chance.random() < 0.3:
            return values(chance)
        path = chance.choice(paths)
        if chance.random() < 0.3:
            path = "/" + mutated(path.encode(), chance).decode("ascii", "ignore").lstrip("/").replace("\x00", "")
            path = "".join(letter for letter in path if 32 < ord(letter) < 127 and letter not in "?#")
        method = chance.choice(("GET", "POST", "PUT", "DELETE", "HEAD"))
        content = text_mutated(body, chance) if method == "POST" else None
        headers = {"Origin": "http://evil.example"} if chance.random() < 0.2 else {}
        status = client.request(method, path, content=content, headers=headers).status_code
        if 400 <= status < 500:
            raise MMError(f"{status}")
        return status in (200, 503)

    return attempt


DOORS: dict[str, Callable[[Path], Try]] = {
    "config": config_door,
    "flags": flags_door,
    "rows": rows_door,
    "prompts": prompts_door,
    "clips": clips_door,
    "images": images_door,
    "zip": zip_door,
    "safetensors": safetensors_door,
    "torch_dist": torch_dist_door,
    "encoders": encoders_door,
    "web": web_door,
}


if __name__ == "__main__":
    sys.exit(main())

"""Makes all inputs of the finetuning example: the quickstart's clips without one colour and one shape, 24 clips that show
these, prompts in four groups, and the configs.
"""

import argparse
import random
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without installing it
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quickstart"))

from clips import Scene, draw, scenes, write_list
from prepare import DIFFUSION, data_config, model_config, sample_config, write_json
from tiny_encoders import write_encoders

QUICKSTART = Path(__file__).resolve().parents[1] / "quickstart"
COLOUR, SHAPE = "yellow", "pillar"  # what the base has never seen
GROUPS = ("new colour", "new shape", "mix", "old")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--clips", type=int, default=640, help="number of clips that the base is trained on")
    parser.add_argument("--new-clips", type=int, default=24, help="number of clips that the adapter is trained on")
    parser.add_argument("--prompts", type=int, default=8, help="number of prompts of each group")
    parser.add_argument("--seed", type=int, default=0, help="seed of clips, text encoders and prompts")
    parser.add_argument("--steps", type=int, default=20, help="number of sampling steps")
    options = parser.parse_args()
    out, rng = options.out, random.Random(options.seed)
    groups = grouped()
    base = [groups["old"][number % len(groups["old"])] for number in range(options.clips)]
    half = options.new_clips // 2
    new = spread(groups["new colour"], half) + spread(groups["new shape"], options.new_clips - half)
    lists = {name: write_list(out / name, [(scene, draw(scene, rng)) for scene in chosen]) for name, chosen in
             (("base", base), ("new", new))}  # fmt: skip
    t5, clip = write_encoders(out / "encoders", [scene.caption for group in groups.values() for scene in group])
    for name in ("wfvae.pt", "wfvae_statistics.json"):
        shutil.copyfile(QUICKSTART / name, out / name)
    prompts = {name: [scene.caption for scene in spread(groups[name], options.prompts)] for name in GROUPS}
    (out / "prompts.txt").write_text("".join(f"{text}\n" for texts in prompts.values() for text in texts))
    write_json(out / "groups.json", prompts)
    write_configs(out, lists, t5, clip, options.steps)
    print(f"prepared {out}: the base sees neither {COLOUR} nor any {SHAPE}, {len(new)} clips show them")


def grouped() -> dict[str, list[Scene]]:
    """Every scene of the grammar, by what is new in it."""
    found: dict[str, list[Scene]] = {name: [] for name in GROUPS}
    for scene in [*scenes(False), *scenes(True)]:
        new = (scene.colour == COLOUR, scene.shape == SHAPE)
        found[{(True, False): "new colour", (False, True): "new shape", (True, True): "mix"}.get(new, "old")].append(
            scene
        )
    return found


def spread(among: list[Scene], count: int) -> list[Scene]:
    """`count` scenes, evenly spread."""
    return [among[number * len(among) // count % len(among)] for number in range(count)]


def write_configs(out: Path, lists: dict[str, Path], t5: Path, clip: Path, steps: int) -> None:
    """base.json and new.json (data), model.json, adapter.json (the model with the base's weights), sample.json."""
    for name, data_list in lists.items():
        write_json(out / f"{name}.json", data_config(data_list, t5, clip, out / f"{name}_features", 0.1))
    shared = model_config(t5, clip, out, sparse=True)
    stored = {"load_video_features": True, "load_text_features": True}
    model = shared | stored | {"diffusion": DIFFUSION}
    merged = {"predictor": {**shared["predictor"], "from_pretrained": str(out / "merged" / "model_ema.pt")}}
    write_json(out / "model.json", model)
    write_json(out / "adapter.json", model | merged)
    write_json(out / "sample.json", shared | merged | sample_config(t5, clip, out / "prompts.txt", out, steps))


if __name__ == "__main__":
    main()

"""The finetuning example: its sets keep the new colour and shape from the base, and its table counts what videos show."""

import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples" / "finetune"), str(ROOT / "examples" / "quickstart")]

import prepare_new  # noqa: E402
import score_groups  # noqa: E402
from clips import draw  # noqa: E402
from measure import measure  # noqa: E402


def test_the_groups_divide_the_grammar():
    groups = prepare_new.grouped()
    assert {name: len(found) for name, found in groups.items()} == {
        "new colour": 16,
        "new shape": 40,
        "mix": 8,
        "old": 80,
    }
    assert not [
        scene for scene in groups["old"] if scene.colour == prepare_new.COLOUR or scene.shape == prepare_new.SHAPE
    ]
    chosen = prepare_new.spread(groups["new shape"], 12)
    assert len(set(chosen)) == 12 and len({scene.colour for scene in chosen}) == 5


def test_the_table_is_right_on_drawn_scenes_and_counts_a_wrong_colour():
    rng, groups = random.Random(0), prepare_new.grouped()
    asked = {name: prepare_new.spread(found, 2) for name, found in groups.items()}
    texts = {name: [scene.caption for scene in found] for name, found in asked.items()}
    right = [(scene, measure(draw(scene, rng))) for found in asked.values() for scene in found]
    assert score_groups.score(right, texts) == dict.fromkeys(prepare_new.GROUPS, 100.0)
    red = next(scene for scene in groups["old"] if scene.colour == "red")
    wrong = [(scene, measure(draw(red, rng))) for found in asked.values() for scene in found]
    found = score_groups.score(wrong, texts)
    assert (found["new colour"], found["new shape"], found["mix"]) == (0.0, 0.0, 0.0)

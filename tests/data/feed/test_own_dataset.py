"""The loader does not care what is behind it: any object with keys, paths and `sample` fits."""

import itertools
import json

import pytest
import torch
from data_helpers import data_config

from mindspeed_mm.data.feed.build import build_loader, joiner
from mindspeed_mm.data.feed.loader import Loader
from mindspeed_mm.data.feed.sampler import Split
from mindspeed_mm.data.feed.samples import Sample
from mindspeed_mm.types import TokenIds


class Squares:
    """Videos of one grey each, without any file. Number 3 cannot be made."""

    keys = ("9x32x64",) * 10 + ("1x32x64",) * 8
    paths = tuple(f"square {number}" for number in range(18))

    def sample(self, index, epoch, allocate=torch.empty):
        if index == 3:
            raise ZeroDivisionError("no such square")
        shape = (3, *map(int, self.keys[index].split("x")))
        video = allocate(shape).fill_(index + epoch / 10)
        text = TokenIds(torch.full((1, 4), index), torch.ones(1, 4, dtype=torch.bool))
        return Sample(video, text, None, "", self.paths[index], self.keys[index])


def loader_of(num_workers: int, evaluation: bool = False) -> Loader:
    config = data_config("no list", None, {"num_workers": num_workers})
    join = joiner(config, 2, (8, 8, 8), 2)
    return build_loader(Squares(), config, Split(2, 2), join, seed=0, evaluation=evaluation)


def seen(loader: Loader, count: int) -> list:
    """(names, first pixel of each) of the next batches."""
    batches = itertools.islice(loader, count)
    return [(batch.paths, batch.clips[:, 0, 0, 0, 0].tolist()) for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_of_your_own_feeds_the_loader(num_workers):
    loader = loader_of(num_workers)
    found = seen(loader, 18)  # two epochs
    assert loader.epoch_size == 18 and loader.epoch == 1
    for number, (paths, pixels) in enumerate(found):
        assert pixels == pytest.approx([int(path.split()[1]) + number // 9 / 10 for path in paths])
    assert "square 3" not in {path for paths, _ in found for path in paths}
    (entry,) = loader.bad_samples.values()
    assert entry.count == 2 and entry.reason == "square 3: ZeroDivisionError: no such square"
    first, second = loader_of(0), loader_of(num_workers)
    seen(first, 4)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert seen(second, 8) == found[4:12]


def test_a_dataset_of_your_own_can_be_held_out():
    assert [paths[0] for paths, _ in seen(loader_of(0, evaluation=True), 6)] == [
        f"square {number}" for number in range(0, 12, 2)
    ]

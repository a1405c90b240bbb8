"""The order of samples."""

import collections
import json

import pytest
import torch
from data_helpers import sampler_of

from mindspeed_mm.data.feed.sampler import GroupedSampler, Position, epoch_order
from mindspeed_mm.errors import ConfigError, DataError

KEYS = ["9x32x64"] * 23 + ["1x32x64"] * 10 + ["9x64x32"] * 5


def sampler(keys=KEYS, **options) -> GroupedSampler:
    return sampler_of(keys, **{"seed": 42, "group_size": 4, **options})


def take(one: GroupedSampler, count: int, position: Position | None = None):
    steps = one.steps(position or Position())
    return [next(steps) for _ in range(count)]


def epoch_of(one: GroupedSampler, position: Position | None = None):
    """The steps up to the end of the epoch of `position`."""
    position = position or Position()
    found = []
    for step in one.steps(position):
        if step.epoch != position.epoch:
            return found
        found.append(step)


# ------------------------------------------------------------------------------------------------ against the original


@pytest.fixture(scope="module")
def original(golden):
    return json.loads(golden("data/samplers.json").read_text())


def golden_cases(original, **wanted):
    return [case for case in original["cases"] if all(case.get(key) == value for key, value in wanted.items())]


def chunked(flat, size):
    return [flat[begin : begin + size] for begin in range(0, len(flat), size)]


def test_the_groups_of_epoch_0_are_the_original_ones_where_those_have_one_shape(original):
    """The original cuts the buckets, one after another, without regard to where one ends: a group can hold two shapes,
    which we mend, and the cuts of the buckets behind that one are moved. All other groups must be the same."""
    keys = original["lengths"]
    begins = {"121x576x1024": 0, "93x480x640": 14, "1x512x512": 19}  # where the buckets begin in the original's list
    cases = golden_cases(original, fn="get_length_grouped_data_indices", group_data=True, initial_global_step=0)
    compared = []
    for case in cases:
        ranks, size = case["world_size"], case["world_size"] * case["batch_size"]
        generator = torch.Generator().manual_seed(case["seed"])
        order = epoch_order(keys, range(len(keys)), size, generator, drop_last=False)
        # the original lays a group out as the ranks' batches one after another
        ours = [[i for rank in range(ranks) for i in group[rank::ranks]] for group in chunked(order, size)]
        theirs = chunked(case["flat"], size)
        right = [
            place
            for place, group in enumerate(theirs)
            if len({keys[i] for i in group}) == 1 and len(set(group)) == size and begins[keys[group[0]]] % size == 0
        ]
        assert all(theirs[place] in ours for place in right), case
        if len(ours) == len(theirs):  # then the groups are shuffled alike too
            assert all(theirs[place] == ours[place] for place in right), case
        compared.append((size, len(right), len(theirs)))
    assert sorted(compared) == [(2, 9, 12)] * 2 + [(4, 3, 6)] * 4 + [(8, 1, 3)] * 2


@pytest.mark.parametrize(("rank", "different"), [(0, [5, 6]), (1, [1, 5])])
def test_two_ranks_take_what_they_take_in_the_golden_order(original, rank, different):
    keys = original["lengths"]
    case = golden_cases(original, fn="get_length_grouped_data_indices", world_size=2, batch_size=1, group_data=True)[0]
    one = sampler_of(keys, seed=42, group_size=2, rank=rank, world_size=2, drop_last=False)
    ours = [step.indices[0] for step in epoch_of(one)]
    theirs = case["per_rank"][rank]
    # in step 1 the original's ranks have different shapes, which moves the cuts of steps 5 and 6
    assert [place for place in range(12) if ours[place] != theirs[place]] == different


def test_a_rank_takes_the_batch_that_the_original_meant_for_it(original):
    # the original builds one batch of two per rank, lays them out one after another, and then hands out every second
    keys = original["lengths"]
    case = golden_cases(original, fn="get_length_grouped_data_indices", world_size=2, batch_size=2, group_data=True)[0]
    meant = chunked(case["flat"], 2)
    options = {"seed": 42, "group_size": 4, "micro_batch_size": 2, "world_size": 2, "drop_last": False}
    parts = [epoch_of(sampler_of(keys, rank=rank, **options)) for rank in range(2)]
    found = [tuple(list(step.indices) for step in steps) for steps in zip(*parts, strict=True)]
    whole = [(meant[place], meant[place + 1]) for place in (0, 2, 8)]  # the groups of one shape, see above
    assert whole == [([16, 7], [12, 20]), ([8, 1], [0, 5]), ([13, 10], [15, 3])]
    assert all(group in found for group in whole)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("shuffle", [False, True])
def test_without_groups_the_order_is_the_golden_distributed_sampler(original, world_size, shuffle):
    cases = golden_cases(original, fn="StatefulDistributedSampler", world_size=world_size, shuffle=shuffle)
    assert len(cases) == 4  # two epochs, from the start and after 8 samples
    for case in cases:
        for rank, expected in enumerate(case["per_rank"]):
            one = sampler_of(
                ["x"] * case["dataset_len"],
                seed=case["seed"],
                group_size=world_size,
                rank=rank,
                world_size=world_size,
                grouped=False,
                shuffle=shuffle,
                drop_last=False,
            )
            steps = epoch_of(one, Position(case["epoch"], case["consumed_samples"]))
            assert [step.indices[0] for step in steps] == expected


# ---------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize(("world_size", "micro"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 1)])
def test_every_rank_of_a_step_has_one_shape_and_no_sample_twice(world_size, micro):
    ranks = [sampler(world_size=world_size, rank=rank, micro_batch_size=micro) for rank in range(world_size)]
    seen = collections.Counter()
    for steps in zip(*(epoch_of(one) for one in ranks), strict=True):
        indices = [index for step in steps for index in step.indices]
        assert all(len(step.indices) == micro for step in steps)
        assert len({KEYS[index] for index in indices}) == 1
        assert len({step.after for step in steps}) == 1
        seen.update(indices)
    assert set(seen.values()) == {1}
    assert len(seen) == ranks[0].epoch_size == 20 + 8 + 4  # what does not fill a group of 4 is left out


def test_every_optimizer_step_has_the_same_samples_at_any_number_of_ranks_and_micro_batch_size():
    def groups(world_size, micro):
        ranks = [sampler(world_size=world_size, rank=rank, micro_batch_size=micro) for rank in range(world_size)]
        steps = [take(one, 24 // (world_size * micro)) for one in ranks]
        flat = [index for step in zip(*steps, strict=True) for part in step for index in part.indices]
        return [sorted(flat[begin : begin + 4]) for begin in range(0, 24, 4)]

    alone = groups(1, 1)
    assert all(groups(*layout) == alone for layout in ((1, 2), (1, 4), (2, 1), (2, 2), (4, 1)))


def test_epochs_follow_each_other_in_different_orders_that_the_seed_decides():
    orders = [[step.indices for step in epoch_of(sampler(), Position(epoch))] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    stream = [step.indices for step in take(sampler(), 96)]
    assert stream == orders[0] + orders[1] + orders[2]
    assert [step.indices for step in take(sampler(seed=7), 32)] != orders[0]
    assert take(sampler(), 96) == take(sampler(), 96)


def test_clips_left_out_of_one_epoch_come_in_others():
    seen = {step.indices[0] for step in take(sampler(), 32 * 12)}
    assert seen == set(range(len(KEYS)))


def test_without_drop_last_every_clip_comes_and_the_first_of_its_shape_fill_up():
    counts = collections.Counter(step.indices[0] for step in epoch_of(sampler(drop_last=False)))
    assert set(counts) == set(range(len(KEYS))) and set(counts.values()) == {1, 2}
    assert sum(counts.values()) == sampler(drop_last=False).epoch_size == 24 + 12 + 8
    one_shape = ["9x32x64"] * 3
    assert [step.indices for step in epoch_of(sampler(one_shape, shuffle=False, drop_last=False, group_size=8))] == [
        (0,), (1,), (2,), (0,), (1,), (2,), (0,), (1,)
    ]  # fmt: skip


@pytest.mark.parametrize("consumed", [0, 4, 16, 32])
def test_a_saved_position_continues_at_another_number_of_ranks(consumed):
    before = sampler(world_size=2, rank=0)
    position = Position() if not consumed else take(before, consumed // 2)[-1].after
    state = json.loads(json.dumps(before.state(position)))
    assert state == {"epoch": 0, "consumed": consumed, "earlier": [], "group_size": 4}
    rest = [step.indices[0] for step in take(sampler(), 64)][consumed:]
    for world_size in (1, 2, 4):
        ranks = [sampler(world_size=world_size, rank=rank) for rank in range(world_size)]
        count = len(rest) // world_size
        parts = [take(one, count, one.position(state)) for one in ranks]
        assert [index for step in zip(*parts, strict=True) for part in step for index in part.indices] == rest


@pytest.mark.parametrize("sizes", [(4, 2), (2, 8), (3, 5), (8, 1)])
def test_with_another_batch_size_the_rest_of_the_epoch_is_still_seen_exactly_once(sizes):
    keys = ["a"] * 40 + ["b"] * 24
    first, second = (sampler(keys, group_size=size) for size in sizes)
    done = take(first, 3 * sizes[0])
    state = first.state(done[-1].after)
    position = second.position(state)
    assert position == Position(0, 0, ((sizes[0], 3 * sizes[0]),))
    rest = epoch_of(second, position)
    seen = collections.Counter(step.indices[0] for step in done + rest)
    assert set(seen.values()) == {1}
    assert len(keys) - 2 * sizes[1] < len(seen) <= len(keys)  # only incomplete groups are left out
    # and once more in the middle of that
    third = sampler(keys, group_size=1)
    half = rest[: len(rest) // 2 // sizes[1] * sizes[1]]
    last = epoch_of(third, third.position(second.state(half[-1].after if half else position)))
    assert collections.Counter(step.indices[0] for step in done + half + last) == dict.fromkeys(range(len(keys)), 1)


def test_a_position_within_a_step_of_more_ranks_is_grouped_anew():
    one = sampler(group_size=4)
    done = take(one, 3)
    four = [sampler(group_size=4, world_size=4, rank=rank) for rank in range(4)]
    rest = [epoch_of(rank, rank.position(one.state(done[-1].after))) for rank in four]
    seen = collections.Counter(step.indices[0] for step in done + [step for steps in rest for step in steps])
    assert set(seen.values()) == {1}
    assert all(len({KEYS[step.indices[0]] for step in steps}) == 1 for steps in zip(*rest, strict=True))


def test_repeating_gives_the_same_epoch_again():
    one = sampler(repeat=True, shuffle=False)
    steps = take(one, 64)
    assert [step.indices for step in steps[:32]] == [step.indices for step in steps[32:]]
    assert {step.epoch for step in steps} == {0}


def test_impossible_sizes_are_errors_that_say_what_to_change():
    with pytest.raises(ConfigError, match="global batch size 4 is not a multiple of 3 data-parallel ranks"):
        sampler(world_size=3)
    with pytest.raises(DataError, match="no shape has the 24 clips of a global batch .the most frequent has 23."):
        sampler(group_size=24)

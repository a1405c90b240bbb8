"""Blocks on the host: which are copied when, beside what, and behind which work."""

import itertools

import pytest
import torch

from mindspeed_mm.parallel.streaming import BlockStream
from mindspeed_mm.platforms.copies import Copies

BLOCKS = 5


class Log(Copies):
    """Copies that are remembered: ("copy", block, mark before it) and ("wait", mark)."""

    def __init__(self):
        self.lines: list[tuple] = []
        self.marks = itertools.count()

    def mark(self):
        return next(self.marks)

    def start(self, place, home, after):
        self.lines.append(("copy", int(home[0][0]), after))
        return super().start(place, home, after)


def make(resident: int) -> tuple[BlockStream, Log]:
    log = Log()
    homes = [log.home(torch.full((8,), block, dtype=torch.uint8)) for block in range(BLOCKS)]
    return BlockStream(homes, resident, torch.device("cpu"), log), log


def step(stream: BlockStream) -> None:
    """A forward and a backward pass: each block is asked for several times."""
    for block in [*range(BLOCKS), *reversed(range(BLOCKS))]:
        for _ in range(3):
            assert stream.block(block).eq(block).all()


@pytest.mark.parametrize("resident", [1, 2, 3, 4])
def test_a_step_copies_each_block_twice_but_those_that_are_still_there(resident):
    stream, log = make(resident)
    step(stream)
    log.lines.clear()
    before = stream.moved_bytes
    step(stream)
    copied = [line[1] for line in log.lines]
    assert copied == [*range(resident, BLOCKS), *reversed(range(BLOCKS - resident))]
    assert stream.moved_bytes - before == 8 * len(copied)


def test_the_next_block_is_copied_while_the_present_one_works():
    stream, log = make(2)
    step(stream)
    log.lines.clear()
    for block in range(3):
        stream.block(block)
        present = [line[1] for line in log.lines]
        assert present == list(range(2, block + 2))  # 0 and 1 were there
    assert stream.block(2).eq(2).all() and stream.block(3).eq(3).all()


def test_a_place_is_overwritten_behind_the_work_that_read_it():
    stream, log = make(2)
    marks = {}
    for block in range(BLOCKS):
        stream.block(block)
        marks[block] = log.lines
    copies = [line for line in log.lines if line[0] == "copy"]
    # block 2 takes the place of 0, whose last work is marked when 1 is entered, behind the copies of 0 and 1
    first, second, third = copies[:3]
    assert first[2] == second[2] == 0
    assert third[1] == 2 and third[2] is not None and third[2] > 0
    assert all(after is not None for _, _, after in copies)

"""Memory of workers that is used again, and never while anybody uses it."""

import pytest
import torch

from mindspeed_mm.data.workers.buffers import SharedBuffers
from mindspeed_mm.data.workers.pool import Lent, WorkerPool
from mindspeed_mm.errors import ConfigError


def address(tensor):
    return tensor.untyped_storage().data_ptr()


def test_a_buffer_is_used_again_once_it_is_given_back():
    buffers = SharedBuffers()
    first = buffers.allocate((2, 3))
    number = buffers.lend(first[None])  # a view is in the same memory
    second = buffers.allocate((2, 3))
    assert first.is_shared() and address(second) != address(first)
    buffers.lend(second)
    buffers.take_back([number])
    again = buffers.allocate((5,))  # it may be larger than what is asked for
    assert address(again) == address(first) and again.shape == (5,)


def test_what_was_allocated_and_not_lent_is_free_again():
    buffers = SharedBuffers()
    missed, used = buffers.allocate((4,)), buffers.allocate((4,))
    assert buffers.lend(used) is not None
    third = buffers.allocate((4,))
    assert address(third) == address(missed)
    assert buffers.lend(torch.empty(4)) is None
    assert address(buffers.allocate((4,))) == address(missed)


def test_a_buffer_that_is_too_small_makes_room_for_a_larger_one():
    buffers = SharedBuffers()
    buffers.take_back([buffers.lend(buffers.allocate((4,)))])
    large = buffers.allocate((400,))
    assert large.untyped_storage().nbytes() == 1600
    buffers.take_back([buffers.lend(large)])
    assert address(buffers.allocate((4,))) == address(large), "the small one is gone"


def test_without_room_the_error_says_where_how_much_and_which_key(monkeypatch):
    def full(size):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)\nat 1"
        )

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", full)
    with pytest.raises(ConfigError) as caught:
        SharedBuffers(4).allocate((2**20,))
    message = str(caught.value)
    assert message.startswith("dataloader_param.num_workers: no shared memory for a clip (") and "\n" not in message
    assert "No space left on device (28)" in message and "; /dev/shm has " in message
    assert "4 workers with up to 4 clips of 4.0 MiB each need 64.0 MiB for every rank" in message
    assert message.endswith("or lower num_workers")


class Full:
    """Work whose answer finds no shared memory on its way to the main process."""

    def __call__(self, task, announce):
        return Unsendable()


class Unsendable:
    def __reduce__(self):
        raise RuntimeError("unable to write to file </torch_7_1>: No space left on device (28), shm")


def test_an_answer_that_finds_no_room_is_one_line_too():
    pool = WorkerPool(Full(), 1, lost=lambda *_: None)
    with pytest.raises(ConfigError, match="dataloader_param.num_workers: no shared memory for a clip"):
        next(pool.run([0]))
    pool.close()


class Filler:
    """Task -> a tensor full of its number, in a buffer; and the buffer's address in the worker."""

    def __init__(self):
        self.buffers = SharedBuffers()
        self.take_back = self.buffers.take_back

    def __call__(self, task, announce):
        tensor = self.buffers.allocate((1000, 50)).fill_(task)
        return Lent((tensor, address(tensor)), tensor, self.buffers.lend(tensor))


@pytest.mark.parametrize("hold", [False, True])
def test_the_pool_uses_memory_again_that_the_main_process_has_done_with(hold):
    pool = WorkerPool(Filler(), 1, lost=lambda *_: None)
    held, addresses = [], set()
    for number, (tensor, place) in enumerate(pool.run(range(20))):
        assert (tensor == number).all()
        addresses.add(place)
        if hold:
            held.append(tensor[0])  # a view is enough to hold on to it
        del tensor
    pool.close()
    assert all((row == number).all() for number, row in enumerate(held))
    assert len(addresses) == 20 if hold else len(addresses) <= 4

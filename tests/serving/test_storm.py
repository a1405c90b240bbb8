"""A small storm: no accepted request is lost and none is made twice, whatever happens to the server."""

import asyncio
import random

import pytest
from storm import Started, free_port, killing, made_twice, rows_of, slow_clients, storm
from storm_server import World

REQUESTS = range(24)


def started(small_model, folder, **settings) -> Started:
    world = World(small_model / "sample.json", folder / "videos", free_port(), 0.005, 100, **settings)
    world.folder.mkdir()
    found = Started(world)
    found.wait()
    return found


@pytest.mark.parametrize("fault", ["killed", "full", "slow"])
def test_no_request_is_lost_and_none_is_made_twice(small_model, tmp_path, fault):
    server = started(small_model, tmp_path, full_every_s=0.3 if fault == "full" else None)
    slow = slow_clients(server.world.port, 20) if fault == "slow" else []
    killer = killing(server, [random.uniform(0.1, 0.5) for _ in range(2)] if fault == "killed" else [])
    try:
        outcome = asyncio.run(asyncio.wait_for(storm(server.address, REQUESTS, 0.2), 60))
        killer.join()
        server.wait()
    finally:
        server.stop()
        for one in slow:
            one.close()
    assert outcome.wrong == [] and len(set(outcome.ids.values())) == len(REQUESTS)
    assert set(rows_of(server.world.folder).values()) == {1} and len(rows_of(server.world.folder)) == len(REQUESTS)
    assert made_twice(server.world.folder) == []
    if fault != "slow":
        assert outcome.tries > 3 * len(REQUESTS)  # else the fault was not met

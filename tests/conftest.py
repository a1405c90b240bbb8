"""Fixtures that every test directory shares."""

import gc
from pathlib import Path

import pytest
from ranks import close_pools

_GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Function from a name such as "vae/wavelets.json" to the file of golden numbers (`golden/README.md`)."""

    def find(name: str) -> Path:
        path = _GOLDEN / name
        assert path.is_file(), f"no golden file {path}"
        return path

    return find


@pytest.fixture(scope="session", autouse=True)
def rank_pools():
    """End the processes of `ranks.run_ranks` with the session."""
    yield
    close_pools()


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Folder of clips with captions that stand for real ones, and broken files (`made_clips.py`)."""
    from made_clips import make_clips

    return make_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A folder with a random model and its sample.json, to sample from."""
    from sampling_world import write_world

    return write_world(tmp_path_factory.mktemp("small_model"))


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory):
    """A python for scripts that start many programs (`warm_python.py`)."""
    from warm_python import warm

    with warm(tmp_path_factory.mktemp("warm")) as python:
        yield python


_LONGEST = ("e2e", "npu", "training", "checkpoint")


def pytest_collection_modifyitems(items):
    """The folders with the longest files first, so that with `-n` no worker is left with one of them at the end."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.parent.name, len(place)))  # stable: files stay as they are


def pytest_collection_finish(session):
    gc.freeze()  # what the imports of all tests have made stays to the end; Python need not look at it again

"""Fixtures that every test directory shares."""

from pathlib import Path

import pytest
from ranks import close_pools

_ROOT = Path(__file__).resolve().parents[1]
_GOLDEN_FOLDERS = (_ROOT.parent / "shared" / "golden", _ROOT / "tests" / "golden")


@pytest.fixture(scope="session")
def golden():
    """Function from a name such as "vae/wavelets.json" to the file of golden numbers; skips where there is none."""

    def find(name: str) -> Path:
        for folder in _GOLDEN_FOLDERS:
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"no golden file {name} in {' or '.join(map(str, _GOLDEN_FOLDERS))}")

    return find


@pytest.fixture(scope="session", autouse=True)
def rank_pools():
    """End the processes of `ranks.run_ranks` with the session."""
    yield
    close_pools()


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder of real clips with captions, shared/clips; skips where it is absent."""
    folder = _ROOT.parent / "shared" / "clips"
    if not folder.is_dir():
        pytest.skip(f"no real clips in {folder}")
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A folder with a random model and its sample.json, to sample from."""
    from sampling_world import write_world

    return write_world(tmp_path_factory.mktemp("small_model"))


_LONGEST = ("e2e", "npu", "training", "checkpoint")


def pytest_collection_modifyitems(items):
    """The folders with the longest files first, so that with `-n` no worker is left with one of them at the end."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.parent.name, len(place)))  # stable: files stay as they are

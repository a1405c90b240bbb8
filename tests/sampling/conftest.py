"""A small model on disk for the tests of sampling."""

from pathlib import Path

import pytest
from sampling_world import write_world


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A folder with a random model and its sample.json."""
    return write_world(tmp_path_factory.mktemp("small_model"))

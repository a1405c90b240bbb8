"""Our errors are one line, whatever the names from files hold."""

import pickle

import pytest

from mindspeed_mm.data.feed.substitutes import NoneUsable
from mindspeed_mm.errors import ConfigError, DataError


@pytest.mark.parametrize("name", ["a\nb", "a\r\nb", "a\x1b[2Kb", "a\u2028b", "a\u2029b", "a\x85b", "a\ud800b"])
def test_a_name_that_would_break_the_line_is_escaped(name):
    text = str(ConfigError(f"{name}: no such file"))
    assert len(text.splitlines()) == 1 and text.startswith("a\\") and text.endswith("b: no such file")
    text.encode()


def test_other_letters_stay():
    text = "视频 été \u00a0 👍: C:\\models"
    assert str(DataError(text)) == text and str(DataError()) == ""


def test_errors_with_more_than_a_message_say_the_message_after_a_trip_between_processes():
    error = pickle.loads(pickle.dumps(NoneUsable("no clip\nof 17x32x32", ())))
    assert str(error) == "no clip\\nof 17x32x32" and error.substitutions == ()

"""A judge that the user gives: a function that says which of its questions a video answers as its prompt asks.

    def judge(frames: np.ndarray, prompt: str) -> dict[str, float]:  # frames: uint8 [T,H,W,3]; answers: 0 to 1

It may return {} for a prompt that it knows nothing of.
"""

import importlib
import importlib.util
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from mindspeed_mm.errors import ConfigError, DataError

Judge = Callable[[np.ndarray, str], Mapping[str, float]]
_FUNCTION = "judge"  # name of the function if the flag gives none


def load(text: str) -> Judge:
    """The function of MODULE:FUNCTION or FILE.py[:FUNCTION]. Raises ConfigError. Runs the code of the file.

    A file may import its neighbours.
    """
    place, _, name = text.rpartition(":")
    if not place:
        place, name = text, _FUNCTION
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # the user's own code raises what it likes
        raise ConfigError(f"--judge {text}: {place} cannot be imported ({type(error).__name__}: {error})") from None
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"--judge {text}: {place} has no function {name}(frames, prompt)")
    return cast(Judge, found)


def ask(judge: Judge, frames: np.ndarray, prompt: str, name: str) -> dict[str, float]:
    """The answers for a video. name: of the video, for errors. Raises DataError for what is no answer."""
    found = judge(frames, prompt)
    try:
        answers = {str(question): float(answer) for question, answer in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"{name}: the judge returned {found!r}; need a dict of numbers from 0 to 1") from None
    for question, answer in answers.items():
        if not (math.isfinite(answer) and 0 <= answer <= 1):
            raise DataError(f"{name}: the judge's answer {question!r} is {answer}; need a number from 0 to 1")
    return answers


def shuffles(prompts: Sequence[str], times: int, seed: int) -> list[list[str]]:
    """The prompts in other orders, for the score of chance."""
    rng = random.Random(seed)
    return [rng.sample(prompts, len(prompts)) for _ in range(times)]


def scores(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Percent for each question: the mean over the videos that were asked it; "all" is the mean of the questions."""
    questions = dict.fromkeys(question for one in answers for question in one)
    found = {}
    for question in questions:
        given = [one[question] for one in answers if question in one]
        found[question] = 100 * sum(given) / len(given)
    return {**found, "all": sum(found.values()) / len(found)} if found else {}


def _from_file(path: Path):
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(f"judge_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module

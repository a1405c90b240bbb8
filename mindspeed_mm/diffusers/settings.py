"""Lets diffusers' constructors take the fields of this package's configs, which stay written once."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from mindspeed_mm.schema import check

Config = TypeVar("Config")


def takes(config: type, without: tuple[str, ...]) -> Callable[[Callable], Callable]:
    """Gives a constructor the fields of a config dataclass as its parameters, which diffusers reads to save and load
    them. without: fields that a diffusers model has no use for.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for field in dataclasses.fields(config):
        if field.name not in without:
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            parameters.append(inspect.Parameter(field.name, keyword, default=default))

    def decorate(constructor: Callable) -> Callable:
        constructor.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        return constructor

    return decorate


def checked(config: type[Config], settings: dict[str, Any]) -> Config:
    """The config of a constructor's settings. Raises ConfigError for a value out of range, TypeError for an unknown one."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    result = config(**values)
    check(result)
    return result

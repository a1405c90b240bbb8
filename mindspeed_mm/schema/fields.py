"""Fields of config dataclasses: what a key or a flag may be is written once, at the field.

    num_heads: int = option(16, at_least=1, at_most=1024)                                   # a key of a JSON
    lr: float = flag(1e-5, "--lr", above=0, at_most=1e3, help="learning rate")              # a flag
    optimizer: OptimizerSettings = group(OptimizerSettings, "optimizer", required=("lr",))  # the flags of its fields

`build.py` reads JSON into them, `command.py` reads flags and prints --help; both check by `Facts.fault`.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

# An integer flag or key without its own limit stays below 2^31, and a number within fp32: larger values would
# silently overflow in a tensor.
MOST_INT = 2**31 - 1
MOST_FLOAT = 3e38


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Facts about a field, apart from its type and default."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    unit: str = ""
    choices: tuple = ()
    aliases: tuple[str, ...] = ()  # other spellings of the key that published files use
    # maps the key's Node and the notes to the value, for values that a type cannot describe
    read: Callable | None = None
    # flag -> the value it sets; None: the flag's argument
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published: tuple[str, ...] = ()  # other spellings of the flag, such as those of published scripts
    help: str = ""
    section: str = ""  # section of --help
    metavar: str = ""
    required: bool = False
    many: bool = False  # one or more values
    may_be_empty: bool = False  # applies to strings

    def fault(self, value: object) -> str | None:
        """The rule that a value breaks, or None. Items of a tuple are checked one by one."""
        if isinstance(value, tuple):
            return next((fault for item in value if (fault := self.fault(item))), None)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return "must be finite"
        if self._outside(value):
            return f"must be {self.range()}"
        most = MOST_INT if isinstance(value, int) else MOST_FLOAT
        if self.at_most is None and self.below is None and abs(value) > most:
            return f"must be at most {most}"
        return None

    def _outside(self, value: float) -> bool:
        return (
            (self.at_least is not None and value < self.at_least)
            or (self.above is not None and value <= self.above)
            or (self.at_most is not None and value > self.at_most)
            or (self.below is not None and value >= self.below)
        )

    def range(self, large: float = math.inf) -> str:
        """The range in words; empty if there is none. large: an upper limit from this on is left out."""
        if self.at_most is not None and self.at_most >= large:
            return dataclasses.replace(self, at_most=None).range()
        if self.at_least is not None and self.at_most is not None:
            return f"from {_shown(self.at_least)} to {_shown(self.at_most)}"
        low = f"at least {_shown(self.at_least)}" if self.at_least is not None else ""
        low = f"above {_shown(self.above)}" if self.above is not None else low
        high = f"at most {_shown(self.at_most)}" if self.at_most is not None else ""
        high = f"below {_shown(self.below)}" if self.below is not None else high
        return f"{low} and {high}" if low and high else low or high


def _shown(limit: float) -> str:
    """A limit in usual notation: 1000, not 1000.0."""
    return str(int(limit)) if limit == int(limit) and abs(limit) < 1e9 else str(limit)


def option(
    default: Any = dataclasses.MISSING,
    *,
    aliases: Collection[str] = (),
    choices: Collection | None = None,
    read: Callable | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field that is a key of a JSON. choices: the legal values; a table of functions gives its keys."""
    facts = Facts(
        aliases=tuple(aliases),
        choices=tuple(choices or ()),
        read=read,
        at_least=at_least,
        above=above,
        at_most=at_most,
        below=below,
    )
    return dataclasses.field(default=default, metadata={"facts": facts})


def flag(
    default: Any,
    name: str,
    *,
    published: Collection[str] = (),
    help: str = "",
    unit: str = "",
    section: str = "",
    metavar: str = "",
    choices: Collection | None = None,
    required: bool = False,
    may_be_empty: bool = False,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field that is set by a flag, or by a positional argument if `name` has no dashes.

    published: other spellings that are accepted. A bool field is a switch that inverts its default; a tuple takes one or
    more values. The default is not checked: a later check may replace it, such as 0 for "another flag's value".
    """
    facts = Facts(
        flags={name: None},
        published=tuple(published),
        help=help,
        unit=unit,
        section=section,
        metavar=metavar,
        choices=tuple(choices or ()),
        required=required,
        many=isinstance(default, tuple),
        may_be_empty=may_be_empty,
        at_least=at_least,
        above=above,
        at_most=at_most,
        below=below,
    )
    return dataclasses.field(default=default, metadata={"facts": facts})


def switches(default: Any, names: Mapping[str, tuple[Any, str]], *, section: str = "") -> Any:
    """A field set by one of several exclusive switches: flag -> (value, help)."""
    facts = Facts(
        flags={name: value for name, (value, _) in names.items()},
        help="\n".join(text for _, text in names.values()),
        section=section,
    )
    return dataclasses.field(default=default, metadata={"facts": facts})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A field whose dataclass has flags: the flags that a program takes, and their changes there."""

    section: str
    only: Collection[str] | None = None
    without: Collection[str] = ()
    required: Collection[str] = ()


def group(
    cls: type,
    section: str,
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    required: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """A field that holds a dataclass of flags. only, without, required, defaults: names of its fields."""
    facts = Group(section=section, only=only, without=without, required=required)
    return dataclasses.field(default=cls(**(defaults or {})), metadata={"group": facts})


def facts_of(field: dataclasses.Field) -> Facts:
    """The facts of any dataclass field; empty for a plain one."""
    return field.metadata.get("facts", _NO_FACTS)


def faults(config: Any) -> Iterator[tuple[str, str]]:
    """(field, message) for each value of a config that is outside its field's range or choices."""
    for field in dataclasses.fields(config):
        facts, value = facts_of(field), getattr(config, field.name)
        if facts is not _NO_FACTS and value != field.default:
            if fault := facts.fault(value):
                yield field.name, f"{value}: {fault}"
            if facts.choices and not facts.read and value is not None and value not in facts.choices:
                yield field.name, f"{value!r} is not one of {', '.join(map(repr, facts.choices))}"


_NO_FACTS = Facts()

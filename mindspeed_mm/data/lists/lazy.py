"""Sequences whose items are made when they are asked for."""

import abc
from collections.abc import Sequence
from typing import Any, TypeVar, overload

Item = TypeVar("Item", covariant=True)


class Lazy(Sequence[Item]):
    """A sequence by its length and `at`; a slice is a list."""

    @abc.abstractmethod
    def at(self, place: int) -> Item:
        """Item number `place`, from 0 on."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Any:
        places = range(len(self))[index]
        return [self.at(place) for place in places] if isinstance(places, range) else self.at(places)

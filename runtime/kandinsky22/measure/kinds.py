"""Kinds of values in a JSON file that a user may have edited: what must hold before the program computes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

Kind = Callable[[object, str], str | None]
"""Takes a value and its place in the file. Gives the first place below it that has another kind, such as
"backends.0.stages.3.batch", or None."""
LIMIT = 2**63
"""Numbers beyond it are no measurements, and arithmetic with them could fail."""


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LIMIT < value < LIMIT


def _single(right: Callable[[object], bool]) -> Kind:
    return lambda value, place: None if right(value) else place


# Numbers are finite, and neither true nor false. A measured one is not negative; memory may be, as a difference.
text = _single(lambda value: isinstance(value, str))
flag = _single(lambda value: isinstance(value, bool))
number = _single(lambda value: _is_number(value) and value >= 0)
positive = _single(lambda value: _is_number(value) and value > 0)
whole = _single(lambda value: _is_number(value) and isinstance(value, int))
count = _single(lambda value: _is_number(value) and isinstance(value, int) and value > 0)


def optional(kind: Kind) -> Kind:
    """A value that may be null, or missing in a record."""
    return lambda value, place: None if value is None else kind(value, place)


def either(first: Kind, second: Kind) -> Kind:
    """A value of one of two kinds. The place of a misfit is that of the second."""
    return lambda value, place: first(value, place) and second(value, place)


def both(first: Kind, second: Kind) -> Kind:
    """A value of two kinds at once."""
    return lambda value, place: _first((first(value, place), second(value, place)))


def one_of(names: Iterable[str]) -> Kind:
    """One of these strings."""
    allowed = frozenset(names)
    return _single(lambda value: isinstance(value, str) and value in allowed)


def record(**fields: Kind) -> Kind:
    """An object with at least these names."""
    return lambda value, place: (
        _first(kind(value.get(name), _below(place, name)) for name, kind in fields.items())
        if isinstance(value, dict)
        else place
    )


def by_name(kind: Kind) -> Kind:
    """An object with any names, whose values are of one kind."""
    return lambda value, place: (
        _first(kind(each, _below(place, name)) for name, each in value.items()) if isinstance(value, dict) else place
    )


def several(kind: Kind, at_least: int = 0) -> Kind:
    """A list of values of one kind."""
    return lambda value, place: (
        _first(kind(each, _below(place, index)) for index, each in enumerate(value))
        if isinstance(value, list) and len(value) >= at_least
        else place
    )


def exactly(*kinds: Kind) -> Kind:
    """A list with one value of each kind."""
    return lambda value, place: (
        _first(kind(each, _below(place, index)) for index, (kind, each) in enumerate(zip(kinds, value, strict=True)))
        if isinstance(value, list) and len(value) == len(kinds)
        else place
    )


def _first(places: Iterable[str | None]) -> str | None:
    return next((place for place in places if place is not None), None)


def _below(place: str, name: Any) -> str:
    return f"{place}.{name}" if place else str(name)

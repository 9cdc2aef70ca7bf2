"""JSON from elsewhere, read into dataclasses: their annotations are the schema, and all of it is checked.

`parse` bounds what a text may be, `read` compares what it holds with the annotations of a dataclass. Both raise
SchemaError, which names the place, what was found there and what was expected; whoever reads a file makes an error of
the file of it.

An annotation is str, int, float, bool, None, Any, a string enumeration, a dataclass, `tuple[X, ...]`, `tuple[X, Y]`,
`dict[str, X]`, a union of these that differ in kind, or `Annotated` with rules, which narrow it. Fields with a default
may be missing. Keys that no field has are refused: a misspelt one would be silently ignored.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

MOST_BYTES = 4 << 20
"""Size of a text that is read at all. The manifest of the published checkpoint has 30 thousand bytes."""
DEEPEST = 32
"""How many lists and objects may lie within each other. A manifest has six."""

T = TypeVar("T")

_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{\]}]', re.DOTALL)
_PLAIN_KEY = re.compile(r"[A-Za-z_][\w-]*")
_WORDS: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    types.NoneType: "null",
    tuple: "a list",
    dict: "an object",
}
_LONGEST = 60
"""Characters of what was found that an error repeats."""


class SchemaError(ValueError):
    """JSON is not what its schema says. The message is a clause without a full stop: place, found, expected."""


@dataclass(frozen=True)
class Rule:
    """What a value must also be: `holds` decides, and `expected` is how an error says it ("a number of 1 or more")."""

    expected: str
    holds: Callable[[Any], bool]


def between(least: int, most: int | None = None) -> Rule:
    """A number from `least` to `most`, both included."""
    expected = f"a number of {least} or more" if most is None else f"a number from {least} to {most}"
    return Rule(expected, lambda value: least <= value and (most is None or value <= most))


def matching(pattern: str, expected: str) -> Rule:
    """A text all of which matches the regular expression `pattern`; `expected` says in words what that is."""
    compiled = re.compile(pattern)
    return Rule(expected, lambda value: compiled.fullmatch(value) is not None)


def one_of(*values: str) -> Rule:
    """One of these texts."""
    return Rule(f"one of {', '.join(values)}", lambda value: value in values)


NOT_EMPTY = Rule("something, not nothing", bool)
"""A text, a list or an object with something in it."""


def parse(text: bytes, *, most_bytes: int = MOST_BYTES, deepest: int = DEEPEST) -> Any:
    """The value of a JSON text in UTF-8.

    Raises SchemaError where it has more than `most_bytes` bytes, more than `deepest` lists and objects within each
    other, a key twice in an object, NaN, or is no JSON at all. Infinities are read: diffusers writes them into configs.
    """
    if len(text) > most_bytes:
        raise SchemaError(f"the text has {len(text)} bytes, expected at most {most_bytes}")
    if _depth(text, deepest) > deepest:
        raise SchemaError(f"lists and objects lie more than {deepest} deep, expected fewer")
    try:
        return json.loads(text.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except SchemaError:
        raise
    except ValueError as error:  # of the decoding, of the syntax, of an integer with thousands of digits
        raise SchemaError(f"the text is not JSON ({error})") from error


def _depth(text: bytes, most: int) -> int:
    """How deep brackets go, in one pass and without recursion; what is within quotes does not count.

    Once it is more than `most`, it is not looked how much more.
    """
    depth = deepest = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        mark = found[0]
        depth += (mark in b"[{") - (mark in b"]}")
        deepest = max(deepest, depth)
        if depth > most:
            break
    return deepest


def is_deeper(value: Any, levels: int = DEEPEST) -> bool:
    """Whether a value of JSON nests deeper than `levels`: what walks or prints it might run out of stack."""
    level = [value]
    for _ in range(levels):
        level = [
            each
            for one in level
            if isinstance(one, dict | list)
            for each in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, each key of which is there once: readers differ in which of two they take."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise SchemaError(f"the key {shown(key)} is twice in one object, expected once")
        found[key] = value
    return found


def _constant(name: str) -> float:
    """A number that JSON does not have: infinities stand in configs that diffusers writes, as `lambda_min_clipped`."""
    if name == "NaN":
        raise SchemaError("the text has NaN, expected a number")
    return float(name)


def read(kind: type[T], value: object, place: str = "") -> T:
    """`value`, as `parse` gives it, as `kind`: any annotation that this module knows, most often a dataclass.

    `place` is where in a larger value it lies, for errors. Raises SchemaError at the first thing that does not fit.
    """
    result: T = _read(kind, value, place)
    return result


class _Form(enum.Enum):
    """How an annotation is read."""

    ANY = enum.auto()
    RULED = enum.auto()
    UNION = enum.auto()
    LIST = enum.auto()
    OBJECT = enum.auto()
    RECORD = enum.auto()
    ENUMERATION = enum.auto()
    PLAIN = enum.auto()


@functools.cache
def _form(kind: Any) -> tuple[_Form, tuple[Any, ...]]:
    """The form of an annotation, and what is in its brackets."""
    origin = get_origin(kind)
    by_origin = {Annotated: _Form.RULED, Union: _Form.UNION, types.UnionType: _Form.UNION}
    by_origin |= {tuple: _Form.LIST, dict: _Form.OBJECT}
    if origin in by_origin:
        return by_origin[origin], get_args(kind)
    if kind is Any:
        return _Form.ANY, ()
    if dataclasses.is_dataclass(kind):
        return _Form.RECORD, ()
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
        return _Form.ENUMERATION, ()
    if kind not in _WORDS:
        raise TypeError(f"a schema cannot have {kind}")
    return _Form.PLAIN, ()


def _read(kind: Any, value: Any, place: str) -> Any:
    form, inner = _form(kind)
    if form is _Form.ANY:
        return value
    if form is _Form.RULED:
        return _read_ruled(inner, value, place)
    if form is _Form.UNION:
        return _read(_member(kind, value, place), value, place)
    if not _is_kind(kind, value):
        raise mismatch(place, value, _expected(kind))
    match form:
        case _Form.LIST:
            return _read_list(inner, value, place)
        case _Form.OBJECT:
            return _read_object(inner, value, place)
        case _Form.RECORD:
            return _read_record(kind, value, place)
        case _Form.ENUMERATION:
            return kind(value)
        case _:
            return _read_plain(kind, value, place)


def _read_ruled(inner: tuple[Any, ...], value: Any, place: str) -> Any:
    """A value of an `Annotated` kind: an annotation, and rules."""
    base, *rules = inner
    result = _read(base, value, place)
    for rule in rules:
        if not rule.holds(result):
            raise mismatch(place, value, rule.expected)
    return result


def _read_list(inner: tuple[Any, ...], value: list[Any], place: str) -> tuple[Any, ...]:
    """A tuple of any length (`tuple[X, ...]`) or of a certain one (`tuple[X, Y]`)."""
    kinds = inner[:1] * len(value) if inner[-1] is ... else inner
    if len(kinds) != len(value):
        raise mismatch(place, value, f"a list of {len(kinds)}")
    return tuple(_read(each, item, f"{place}[{i}]") for i, (each, item) in enumerate(zip(kinds, value, strict=True)))


def _read_object(inner: tuple[Any, ...], value: Mapping[str, Any], place: str) -> dict[Any, Any]:
    """A dictionary, of which the keys are texts."""
    keys, values = inner
    of_keys = f"a key of {place or 'the whole'}"
    return {_read(keys, key, of_keys): _read(values, each, _inner(place, key)) for key, each in value.items()}


def _read_record(kind: Any, value: Mapping[str, Any], place: str) -> Any:
    """A dataclass from an object with its fields as keys."""
    fields = _fields(kind)
    for key in value:
        if key not in fields:
            raise SchemaError(f"{_inner(place, key)} is not known, expected only {', '.join(fields)}")
    for key, (annotation, required) in fields.items():
        if required and key not in value:
            raise SchemaError(f"{_inner(place, key)} is missing, expected {_expected(annotation)}")
    return kind(**{key: _read(fields[key][0], each, _inner(place, key)) for key, each in value.items()})


@functools.cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The annotation of each field of a dataclass, and whether it must be there."""
    hints = get_type_hints(kind, include_extras=True)
    nothing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is nothing and field.default_factory is nothing)
        for field in dataclasses.fields(kind)
    }


def _read_plain(kind: Any, value: Any, place: str) -> Any:
    """A text, a number, a truth or null, of what JSON can say and a computer not hold."""
    if kind is str and not _is_unicode(value):
        raise mismatch(place, value, "a text of whole characters")
    if kind is not float:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise mismatch(place, value, "a number that a computer holds")
    return number


def _is_unicode(text: str) -> bool:
    """JSON can escape half of a character, which no file and no terminal takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _member(union: Any, value: Any, place: str) -> Any:
    """The member of a union that is of the kind of a value."""
    for member in get_args(union):
        if _is_kind(member, value):
            return member
    raise mismatch(place, value, _expected(union))


def _is_kind(kind: Any, value: Any) -> bool:
    """Whether a value is of the kind of JSON that an annotation asks for; its insides are another matter."""
    form, inner = _form(kind)
    match form:
        case _Form.RULED:
            return _is_kind(inner[0], value)
        case _Form.LIST:
            return isinstance(value, list)
        case _Form.OBJECT | _Form.RECORD:
            return isinstance(value, dict)
        case _Form.ENUMERATION:
            return isinstance(value, str) and value in list(kind)
        case _ if kind is float:
            return type(value) in (int, float)
        case _:
            return type(value) is kind  # and not isinstance: True is an int


def _expected(kind: Any) -> str:
    """What an annotation asks for, in words."""
    form, inner = _form(kind)
    match form:
        case _Form.RULED:
            ruled = [rule.expected for rule in inner[1:] if rule is not NOT_EMPTY]
            return " and ".join(ruled) or _expected(inner[0])
        case _Form.UNION:
            return " or ".join(_expected(member) for member in inner)
        case _Form.ENUMERATION:
            return f"one of {', '.join(kind)}"
        case _Form.LIST:
            return _WORDS[tuple]
        case _Form.OBJECT | _Form.RECORD:
            return _WORDS[dict]
        case _:
            return _WORDS[kind]


def _inner(place: str, key: str) -> str:
    """The place of a key's value: `components.movq`, `files["onnx/movq.onnx"]`."""
    if _PLAIN_KEY.fullmatch(key) and len(key) <= _LONGEST:
        return f"{place}.{key}" if place else key
    return f"{place}[{shown(key)}]"


def mismatch(place: str, value: object, expected: str) -> SchemaError:
    """The error for a value that is something else than what was expected at a place."""
    return SchemaError(f"{place or 'the whole'} is {shown(value)}, expected {expected}")


def shown(value: object) -> str:
    """What was found, in few characters and without what a terminal might obey."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 4 * _LONGEST:
        return "a number of many digits"
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

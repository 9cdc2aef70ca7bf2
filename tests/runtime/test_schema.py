"""JSON is read into dataclasses, or refused with the place, what was found there and what was expected."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest

from kandinsky22 import schema
from kandinsky22.schema import SchemaError


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Leaf:
    size: Annotated[int, schema.between(1, 9)]
    colour: Colour = Colour.RED


@dataclass(frozen=True)
class Tree:
    name: Annotated[str, schema.NOT_EMPTY]
    leaves: tuple[Leaf, ...]
    heights: dict[Annotated[str, schema.matching("[a-z]+", "small letters")], float]
    shape: tuple[int | str, ...] = ()
    pair: tuple[float, float] | None = None
    old: bool = False
    kind: Annotated[str, schema.one_of("oak", "elm")] = "oak"
    more: dict[str, Any] = field(default_factory=dict)


WHOLE: dict[str, Any] = {
    "name": "t",
    "leaves": [{"size": 1}, {"size": 9, "colour": "blue"}],
    "heights": {"low": 1, "high": 2.5},
    "shape": [3, "B"],
    "pair": [1, 2.5],
    "old": True,
    "kind": "elm",
    "more": {"a": [None, {}]},
}


def load(data: Any) -> Tree:
    return schema.read(Tree, schema.parse(json.dumps(data).encode()))


def test_what_fits_is_read_as_the_annotations_say() -> None:
    tree = load(WHOLE)
    assert tree == Tree(
        name="t",
        leaves=(Leaf(1), Leaf(9, Colour.BLUE)),
        heights={"low": 1.0, "high": 2.5},
        shape=(3, "B"),
        pair=(1.0, 2.5),
        old=True,
        kind="elm",
        more={"a": [None, {}]},
    )
    assert isinstance(tree.heights["low"], float)
    assert load(json.loads(json.dumps(dataclasses.asdict(tree)))) == tree


def test_fields_with_a_default_may_be_missing() -> None:
    assert load({"name": "t", "leaves": [], "heights": {}}) == Tree("t", (), {})
    assert load({"name": "t", "leaves": [], "heights": {}, "pair": None}).pair is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 7}, "name is 7, expected a text"),
        ({"name": ""}, 'name is "", expected something, not nothing'),
        ({"name": "\ud800"}, r'name is "\ud800", expected a text of whole characters'),
        ({"name": "n" * 100 + "\n"}, None),
        ({"leaves": {}}, "leaves is an object, expected a list"),
        ({"leaves": [{"size": 1}, {"size": 0}]}, "leaves[1].size is 0, expected a number from 1 to 9"),
        ({"leaves": [{"size": 10}]}, "leaves[0].size is 10, expected a number from 1 to 9"),
        ({"leaves": [{"size": 1.0}]}, "leaves[0].size is 1.0, expected a whole number"),
        ({"leaves": [{"size": True}]}, "leaves[0].size is true, expected a whole number"),
        ({"leaves": [{}]}, "leaves[0].size is missing, expected a number from 1 to 9"),
        ({"leaves": [{"size": 1, "colour": "green"}]}, 'leaves[0].colour is "green", expected one of red, blue'),
        ({"leaves": [{"size": 1, "colour": ["red"]}]}, "leaves[0].colour is a list of 1, expected one of red, blue"),
        ({"leaves": [{"size": 1, "width": 2}]}, "leaves[0].width is not known, expected only size, colour"),
        ({"leaves": [{"size": 1, "a b": 2}]}, 'leaves[0]["a b"] is not known, expected only size, colour'),
        ({"leaves": ["x" * 200]}, f'leaves[0] is "{"x" * 58}…, expected an object'),
        ({"heights": []}, "heights is a list of 0, expected an object"),
        ({"heights": {"Low": 1}}, 'a key of heights is "Low", expected small letters'),
        ({"heights": {"low": "1"}}, 'heights.low is "1", expected a number'),
        ({"heights": {"low": False}}, "heights.low is false, expected a number"),
        ({"heights": {"low": 10**400}}, "heights.low is a number of many digits, expected a number that a computer"),
        ({"shape": [1, 2.5]}, "shape[1] is 2.5, expected a whole number or a text"),
        ({"pair": [1]}, "pair is a list of 1, expected a list of 2"),
        ({"pair": 1}, "pair is 1, expected a list or null"),
        ({"old": 1}, "old is 1, expected true or false"),
        ({"kind": "ash"}, 'kind is "ash", expected one of oak, elm'),
        ({"more": None}, "more is null, expected an object"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(changes: dict[str, Any], message: str | None) -> None:
    if message is None:
        load(WHOLE | changes)
        return
    with pytest.raises(SchemaError, match="^" + re.escape(message)):
        load(WHOLE | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the text is not JSON"),
        (b"{", "the text is not JSON"),
        (b"\xff\xfe\x00", "the text is not JSON"),
        (b'{"a": 1, "b": 2, "a": 3}', 'the key "a" is twice in one object'),
        (b"[NaN]", "the text has NaN, expected a number"),
        (b"1" * 5000, "the text is not JSON"),
        (b"[" * 33 + b"]" * 33, "lists and objects lie more than 32 deep"),
        (b'{"a":' * 100_000, "lists and objects lie more than 32 deep"),
        (b" " * (schema.MOST_BYTES + 1), f"the text has {schema.MOST_BYTES + 1} bytes"),
    ],
    ids=repr,
)
def test_a_text_is_bounded_before_it_is_read(text: bytes, message: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(message)):
        schema.parse(text)


def test_brackets_in_texts_are_no_depth() -> None:
    assert schema.parse(json.dumps(["[" * 100, '"' + "{" * 100, "\\"]).encode()) == ["[" * 100, '"' + "{" * 100, "\\"]
    assert schema.parse(b"[" * 32 + b"]" * 32)


@pytest.mark.parametrize("text", [b'"' + b'\\"' * 10**6, b'"' * 10**6, b"\\" * 10**6, b'["' + b"x" * 10**6])
def test_no_text_takes_long_to_refuse(text: bytes) -> None:
    started = time.process_time()
    with pytest.raises(SchemaError):
        schema.parse(text)
    assert time.process_time() - started < 5  # and not the hours of a pass for every byte


def test_a_schema_of_ours_that_cannot_be_read_is_no_fault_of_the_text() -> None:
    with pytest.raises(TypeError, match="a schema cannot have"):
        schema.read(bytes, "x")

"""Random input: how many examples of it, and what it is made of. `make fuzz` runs all that is called test_fuzz_*."""

from __future__ import annotations

import copy
import datetime
import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

LONG_SECONDS = 10
"""What no example takes on the slowest machine: longer is a hang."""
MANY = 5000

TEXTS = (
    *("", " ", "\0", "\n", "a\nb", "\r", "\x1b[2J", "\x1b]0;a\x07", "\x9b31m", "\u202e", "\u2028", "\ufeff", "\ud800"),
    *("NaN", "null", "-1", "--force", "-o", "--output=x", "--", "-", "$(id)", "`id`", "'", '"', "\\", "%s", "{0}", "~"),
    *("../../etc/passwd", "/dev/zero", "/dev/stdin", "http://a/b.png", "ы" * 3000, "a" * 70_000, "😀", "e\u0301"),
)
NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 8, 64, 255, 256, 1000, 1001, 65_535, 10**6, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**400),
    *(0.5, 1.5, -0.0, 1e-320, 1e-9, 1e9, 1e308, math.inf, -math.inf, math.nan),
)

scalars: SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(-2, 300),
    st.integers(),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=20),
)
json_values: SearchStrategy[Any] = st.one_of(
    scalars,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    ),
    st.builds(lambda number, value: [value] * number, st.integers(0, 2000), scalars),
    st.builds(lambda deep: json.loads("[" * deep + "]" * deep), st.integers(1, 200)),
)
"""Values as JSON can hold them, and NaN and infinities, which Python's JSON can hold as well."""

DEEP = st.integers(1, 40) | st.integers(1, 2000) | st.integers(1, 200_000)
"""How deep: about what is allowed, about as deep as Python goes, and deeper than anybody's stack."""


def _nested(deep: int, before: bytes, behind: bytes, *, closed: bool) -> bytes:
    return before * deep + (b"1" + behind * deep if closed else b"")


deep_json: SearchStrategy[bytes] = st.builds(
    lambda deep, marks, closed: _nested(deep, *marks, closed=closed),
    DEEP,
    st.sampled_from([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"files":', b"}]")]),
    st.booleans(),
)
"""Files of lists and objects within each other, whole or cut short."""


def _nest(deep: int, *, in_objects: bool) -> Any:
    value: Any = 1
    for _ in range(deep):
        value = {"a": value} if in_objects else [value]
    return value


deep_values: SearchStrategy[Any] = st.builds(lambda deep, kind: _nest(deep, in_objects=kind), DEEP, st.booleans())
"""The same as values. Whatever walks them itself, as `mutated_json`, runs out of stack."""


def examples(fast: int) -> int:
    """`fast` in the fast suite; KANDINSKY22_FUZZ_EXAMPLES says how many where somebody looks for longer."""
    return int(os.environ.get("KANDINSKY22_FUZZ_EXAMPLES", fast))


def family(fast: int) -> pytest.MarkDecorator:
    """A test of `count` examples: `fast` ones, and among the slow tests `MANY`."""
    return pytest.mark.parametrize("count", [fast, pytest.param(MANY, marks=pytest.mark.slow)])


def run(count: int, check: Callable[..., None], **strategies: SearchStrategy[Any]) -> None:
    """Check `count` examples: always the same ones, unless somebody says how many, and then others every time."""
    every = settings(
        max_examples=examples(count),
        deadline=datetime.timedelta(seconds=LONG_SECONDS),
        derandomize="KANDINSKY22_FUZZ_EXAMPLES" not in os.environ,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        database=None,
    )
    every(given(**strategies)(check))()


def refused(call: Callable[[], object], *errors: type[Exception]) -> bool:
    """Whether a call raises one of our errors, which has one line; any other error passes."""
    said = None
    try:
        call()
    except errors as error:
        said = str(error)
    assert said is None or len(said.splitlines()) == 1, said
    return said is not None


@st.composite
def mutated_json(draw: st.DrawFn, whole: Any) -> Any:
    """A JSON value with one to three places changed: another value, one more, one less, or that of another place."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(json_values)
        holder, key = draw(st.sampled_from(places))
        match draw(st.integers(0, 5)):
            case 0:
                del holder[key]
            case 1:
                other, name = draw(st.sampled_from(places))
                holder[key] = copy.deepcopy(other[name])
            case 2 if isinstance(holder, dict):
                holder[draw(st.sampled_from(TEXTS) | st.text(max_size=8))] = draw(json_values)
            case 2:
                holder.append(draw(json_values))
            case 3:
                holder[key] = draw(scalars)
            case _:
                holder[key] = draw(json_values)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


@st.composite
def mutated_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with bits turned, cut short, with runs of other bytes, with numbers of another size, or mixed up."""
    data = bytearray(whole)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 5)))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 5)):
            case 0 if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del data[place:]
                data += b"\0" * draw(st.sampled_from((0, 0, 100)))
            case 2:
                wrong = draw(st.sampled_from((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\1\0\0", b"\x80")))
                data[place : place + len(wrong)] = wrong
            case 3:
                data[place:place] = data[: draw(st.integers(0, 20))]
            case 4:
                data[place : place + draw(st.integers(0, 12))] = draw(st.binary(max_size=12))
            case _:
                data[place:place] = draw(st.binary(max_size=4))
    return bytes(data)


def dumped(value: Any) -> bytes:
    """JSON as others may have written it, half surrogate pairs as escapes."""
    return json.dumps(value).encode()

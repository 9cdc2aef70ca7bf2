"""Checks of what a user asks for: each returns the value in one form, or raises InputError with one sentence."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from numbers import Integral, Real

from kandinsky22.errors import InputError, shown

MAX_SEED = 2**63 - 1
STRENGTH = 0.3
"""Strength of image to image when none is given: diffusers' default."""
MAX_STEPS = 1000
MAX_PICTURES = 4096
NO_SKIP = "none"
FORECAST = "forecast"
SHALLOW = "shallow"
INTERVALS = {FORECAST: 2, SHALLOW: 3}
"""Ways to skip steps, with of how many steps one is computed where no interval is given."""
SKIPS = f"{NO_SKIP}, {FORECAST} or {SHALLOW}, the latter two with :N where one in N steps is computed, 2 to {MAX_STEPS}"


def whole(name: str, value: object, low: int, high: int) -> int:
    """An integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise InputError(f"{name} is {shown(value)}; expected a whole number from {low} to {high}.")
    return int(value)


def side(name: str, value: object, largest: int | None = None) -> int:
    """A side of a picture in pixels, up to the `largest` of the bundle where it is known."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= (largest or int(value)):
        most = "the largest side of the bundle" if largest is None else largest
        raise InputError(f"{name} is {shown(value)}; expected a whole number from 1 to {most}.")
    return int(value)


def scale(name: str, value: object) -> float:
    """A finite guidance scale of 0 or more."""
    number = _finite(value)
    if number is None or number < 0:
        raise InputError(f"{name} is {shown(value)}; expected a finite number of 0 or more (1 or below: no guidance).")
    return number


def positive(name: str, value: object) -> float:
    """A finite number above 0."""
    number = _finite(value)
    if number is None or number <= 0:
        raise InputError(f"{name} is {shown(value)}; expected a number above 0.")
    return number


def share(name: str, value: object) -> float:
    """A number from 0 to 1."""
    number = _finite(value)
    if number is None or not 0 <= number <= 1:
        raise InputError(f"{name} is {shown(value)}; expected a number from 0 to 1.")
    return number


def numbers(name: str, value: object) -> list[float]:
    """A list of finite numbers."""
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} is {shown(value)}; expected a list of numbers, one for each prompt or picture.")
    found = [_finite(each) for each in value]
    for each, number in zip(value, found, strict=True):
        if number is None:
            raise InputError(f"{name} has {shown(each)}; expected finite numbers.")
    return [number for number in found if number is not None]


def _finite(value: object) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def text(name: str, value: object) -> str:
    """A string, which may be empty."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {shown(value)}; expected a string.")
    return _unicode(name, [value])[0]


def interval(name: str, value: object) -> tuple[float, float]:
    """Two shares 0 <= from <= to <= 1."""
    ends = [_finite(end) for end in value] if isinstance(value, tuple | list) else []
    if len(ends) == 2 and ends[0] is not None and ends[1] is not None and 0 <= ends[0] <= ends[1] <= 1:
        return ends[0], ends[1]
    raise InputError(f"{name} is {shown(value)}; expected two numbers, 0 <= from <= to <= 1.")


def texts(name: str, value: object) -> list[str]:
    """A list of strings that is not empty."""
    if not isinstance(value, list | tuple) or not value or not all(isinstance(each, str) for each in value):
        raise InputError(f"{name} is {shown(value)}; expected a string, or a list of at least one string.")
    return _unicode(name, value)


def negative_prompts(value: str | Sequence[str] | None, count: int) -> list[str] | None:
    """None, or one negative prompt for each of `count` prompts; a single one serves all of them."""
    if value is None or isinstance(value, str):
        return None if value is None else [value] * count
    if len(value) != count:
        raise InputError(
            f"negative_prompt is {shown(value)}; expected None, a string, or a list of {count} strings, one a prompt."
        )
    return list(value)


def seeds(value: int | Sequence[int] | None, count: int) -> list[int]:
    """One seed a picture. An integer s gives picture i the seed s + i, a list gives each its own, None draws s."""
    if value is None:
        value = secrets.randbelow(2**32)
    if isinstance(value, list | tuple):
        if len(value) != count:
            raise InputError(
                f"seed has {len(value)} values for {count} pictures; expected one a picture, or one number."
            )
        return [whole("seed", each, 0, MAX_SEED) for each in value]
    first = whole("seed", value, 0, MAX_SEED)
    whole("seed of the last picture", first + count - 1, 0, MAX_SEED)
    return list(range(first, first + count))


def choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """One of the strings in `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name} is {shown(value)}; expected one of {', '.join(allowed)}.")
    return value


def skip(name: str, value: object) -> str:
    """Which steps are not computed as a whole, in its one form: "none", "forecast:INTERVAL", or "shallow:INTERVAL"."""
    kind, colon, interval = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind == NO_SKIP and not colon:
        return NO_SKIP
    number = interval if colon else str(INTERVALS.get(kind, ""))
    if kind in INTERVALS and number.isascii() and number.isdecimal() and 2 <= int(number[:9]) <= MAX_STEPS:
        return f"{kind}:{int(number[:9])}"
    raise InputError(f"{name} is {shown(value)}; expected {SKIPS}.")


def _unicode(name: str, texts: Sequence[str]) -> list[str]:
    """The texts. Refuses half a surrogate pair, which Python makes of bytes that are no text."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name} is {shown(text)}, which is not valid Unicode text; expected UTF-8.") from error
    return list(texts)

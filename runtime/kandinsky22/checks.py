"""Checks of what a user asks for: each returns the value in one form, or raises InputError with one sentence."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from numbers import Integral, Real

from kandinsky22.errors import InputError

MAX_SEED = 2**63 - 1
STRENGTH = 0.3
"""Of image to image, where nothing else is asked for: diffusers' default."""
MAX_STEPS = 1000
MAX_PICTURES = 4096


def whole(name: str, value: object, low: int, high: int) -> int:
    """An integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise InputError(f"{name} is {value!r}; expected a whole number from {low} to {high}.")
    return int(value)


def scale(name: str, value: object) -> float:
    """A finite guidance scale of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise InputError(f"{name} is {value!r}; expected a finite number of 0 or more (1 or below: no guidance).")
    return float(value)


def positive(name: str, value: object) -> float:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
        raise InputError(f"{name} is {value!r}; expected a number above 0.")
    return float(value)


def share(name: str, value: object) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise InputError(f"{name} is {value!r}; expected a number from 0 to 1.")
    return float(value)


def weights(value: object, count: int) -> list[float]:
    """One finite number for each of `count` things to mix."""
    if not isinstance(value, list | tuple) or len(value) != count:
        has = f"has {len(value)} numbers" if isinstance(value, list | tuple) else f"is {_short(value)}"
        raise InputError(f"weights {has}; expected a list of {count}, one for each prompt or picture.")
    for each in value:
        if isinstance(each, bool) or not isinstance(each, Real) or not math.isfinite(each):
            raise InputError(f"weights has {each!r}; expected finite numbers.")
    return [float(each) for each in value]


def text(name: str, value: object) -> str:
    """A string, which may be empty."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {_short(value)}; expected a string.")
    return _unicode(name, [value])[0]


def interval(name: str, value: object) -> tuple[float, float]:
    """Two shares 0 <= from <= to <= 1."""
    if (
        not isinstance(value, tuple | list)
        or len(value) != 2
        or not all(isinstance(end, Real) and not isinstance(end, bool) for end in value)
        or not 0 <= value[0] <= value[1] <= 1
    ):
        raise InputError(f"{name} is {_short(value)}; expected two numbers, 0 <= from <= to <= 1.")
    return float(value[0]), float(value[1])


def prompts(value: object) -> list[str]:
    """One prompt or several, as a list that is not empty."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not values or not all(isinstance(text, str) for text in values):
        raise InputError(f"prompt is {_short(value)}; expected a string, or a list of at least one string.")
    return _unicode("prompt", values)


def negative_prompts(value: object, count: int) -> list[str] | None:
    """None, or one negative prompt for each of `count` prompts; a single one serves all of them."""
    if value is None:
        return None
    if isinstance(value, str):
        return _unicode("negative_prompt", [value]) * count
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value) or len(value) != count:
        raise InputError(
            f"negative_prompt is {_short(value)}; expected None, a string, or a list of {count} strings, one a prompt."
        )
    return _unicode("negative_prompt", value)


def seeds(value: int | Sequence[int] | None, count: int) -> list[int]:
    """One seed a picture: of an integer s, picture i has s + i; a list gives each; None takes one at random."""
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
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(allowed)}.")
    return value


def _unicode(name: str, texts: Sequence[str]) -> list[str]:
    """`texts`, none of which has a half of a surrogate pair: what Python makes of bytes that are no text."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name} is {_short(text)}, which is not valid Unicode text; expected UTF-8.") from error
    return list(texts)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

"""What a parameter may be: each kind checks a value, reads it from a word, and describes it as JSON schema.

Nothing here imports NumPy or Pillow: the command line's `--help` waits for neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kandinsky22 import checks
from kandinsky22.errors import InputError, shown
from kandinsky22.request.encoding import encoded

SCHEDULERS = ("ddpm", "ddim", "dpm++", "dpm++-karras")
"""Schedulers of a decoder by the names that the command line and JSON know them by."""
PRIOR_SCHEDULERS = ("unclip", "ddim", "dpm++")
"""Those of the prior."""


@dataclass(frozen=True)
class Kind:
    """One kind of values.

    `check(name, value)` gives a value of Python or JSON in its one form, or raises InputError. `parse(word)` reads a
    word of the command line, and raises ValueError with what it expected; None where no word can say it. `words` is
    how many words there are: None for one, 0 for a switch, "+" for one or more. `schema` is JSON schema.
    """

    check: Callable[[str, Any], Any]
    parse: Callable[[str], Any] | None
    schema: Mapping[str, Any] = field(default_factory=dict)
    metavar: str | tuple[str, ...] | None = None
    words: int | str | None = None
    choices: tuple[str, ...] = ()
    encode: Callable[[Any], Any] | None = None


def whole(low: int, high: int, metavar: str = "N") -> Kind:
    """Whole numbers from `low` to `high`."""

    def parse(word: str) -> int:
        try:
            return checks.whole("it", int(word), low, high)
        except ValueError:
            raise ValueError(f"{shown(word)} is no whole number from {low} to {high}") from None

    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Kind(lambda name, value: checks.whole(name, value, low, high), parse, schema, metavar)


def side() -> Kind:
    """A side of a picture in pixels; the largest is the bundle's to say."""

    def check(name: str, value: Any) -> int | None:
        return None if value is None else checks.side(name, value)

    return Kind(check, int, {"type": ["integer", "null"], "minimum": 1}, "PIXELS")


def scale() -> Kind:
    """Guidance scales: finite numbers of 0 or more."""

    def parse(word: str) -> float:
        try:
            return checks.scale("it", float(word))
        except ValueError:
            raise ValueError(f"{shown(word)} is no finite number of 0 or more") from None

    return Kind(checks.scale, parse, {"type": "number", "minimum": 0}, "SCALE")


def share() -> Kind:
    """Numbers from 0 to 1."""
    return Kind(checks.share, _share, {"type": "number", "minimum": 0, "maximum": 1}, "SHARE")


def interval() -> Kind:
    """Two numbers from 0 to 1, the smaller first."""
    bounds = {"type": "number", "minimum": 0, "maximum": 1}
    schema = {"type": "array", "items": bounds, "minItems": 2, "maxItems": 2}
    return Kind(checks.interval, _share, schema, ("FROM", "TO"), 2)


def switch() -> Kind:
    """True or False."""

    def check(name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise InputError(f"{name} is {shown(value)}; expected True or False.")
        return value

    return Kind(check, None, {"type": "boolean"}, words=0)


def choice(*names: str) -> Kind:
    """One of some names."""
    return Kind(lambda name, value: checks.choice(name, value, names), str, {"enum": list(names)}, choices=names)


def choice_or_none(*names: str) -> Kind:
    """One of some names, or None."""

    def check(name: str, value: Any) -> str | None:
        return None if value is None else checks.choice(name, value, names)

    return Kind(check, str, {"enum": [*names, None]}, choices=names)


def skip() -> Kind:
    """Which steps are not computed: "none", "forecast:N" or "shallow:N"."""

    def parse(word: str) -> str:
        try:
            return checks.skip("it", word.lower())
        except InputError:
            raise ValueError(f"{shown(word)} is not {checks.SKIPS}") from None

    pattern = f"^({checks.NO_SKIP}|({'|'.join(checks.INTERVALS)})(:[0-9]{{1,4}})?)$"
    return Kind(checks.skip, parse, {"type": "string", "pattern": pattern}, "WHICH")


def seed() -> Kind:
    """One seed, a list of one a picture, or None."""

    def check(name: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [checks.whole(name, each, 0, checks.MAX_SEED) for each in value]
        return None if value is None else checks.whole(name, value, 0, checks.MAX_SEED)

    one = {"type": "integer", "minimum": 0, "maximum": checks.MAX_SEED}
    schema = {"anyOf": [one, {"type": "array", "items": one}, {"type": "null"}]}
    return Kind(check, whole(0, checks.MAX_SEED).parse, schema, "N")


def count_or_all() -> Kind:
    """A number of pictures, or None for all."""
    some = whole(1, checks.MAX_PICTURES)

    def check(name: str, value: Any) -> int | None:
        return None if value is None else checks.whole(name, value, 1, checks.MAX_PICTURES)

    return Kind(check, some.parse, {**some.schema, "type": ["integer", "null"]}, "N")


def scheduler(names: tuple[str, ...] = SCHEDULERS) -> Kind:
    """None, the name of a scheduler, a config of diffusers, or a scheduler of diffusers."""

    def check(name: str, value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        from kandinsky22.schedulers import configs

        return configs.given(value, configs.CHOICES[name])

    def parse(word: str) -> str:
        return word.lower()

    schema = {"anyOf": [{"enum": list(names)}, {"type": "object"}, {"type": "null"}]}
    return Kind(check, parse, schema, choices=names)


def text() -> Kind:
    """A string or None."""

    def check(name: str, value: Any) -> str | None:
        return None if value is None else checks.text(name, value)

    return Kind(check, str, {"type": ["string", "null"]}, "TEXT")


def texts() -> Kind:
    """A string, a list of strings, or None; how many there may be is the task's to say."""

    def check(name: str, value: Any) -> Any:
        if value is None or isinstance(value, str):
            return None if value is None else checks.text(name, value)
        return checks.texts(name, value)

    one = {"type": "string"}
    schema = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}, {"type": "null"}]}
    return Kind(check, str, schema, "TEXT")


def path() -> Kind:
    """The path of a file, or None."""

    def check(name: str, value: Any) -> Path | None:
        if value is not None and not isinstance(value, str | Path):
            raise InputError(f"{name} is of type {type(value).__name__}; expected the path of a file.")
        return None if value is None else Path(value)

    return Kind(check, str, {"type": ["string", "null"]}, "FILE")


def pictures(*, embeddings: bool = False) -> Kind:
    """Pictures: a path, a PIL picture or an array, or a list of them; `kandinsky22.images.reading` reads them.

    Where `embeddings` or latents stand for pictures, they are arrays of floats.
    """
    one = {"type": "string", "description": "path of a picture, or {png: base64} or {npy: base64}"}
    schema = {"anyOf": [one, {"type": "object"}, {"type": "array"}, {"type": "null"}]}
    return Kind(lambda name, value: value, str, schema, "FILE")


def arrays() -> Kind:
    """An array of floats, or None; of which shape, the task says."""
    return Kind(lambda name, value: value, None, {"type": ["object", "null"]})


def parts() -> Kind:
    """What is mixed: strings are prompts, anything else is a picture; or {"text": …} and {"image": …}."""

    def check(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list | tuple) or not value:
            raise InputError("There is nothing to mix; expected a list of prompts and pictures.")
        return [_part(f"{name}[{place}]", each) for place, each in enumerate(value)]

    def encode(value: Any) -> list[dict[str, Any]]:
        return [{"text": each} if isinstance(each, str) else {"image": encoded(each)} for each in value]

    schema = {"type": "array", "minItems": 1, "items": {"type": "object"}}
    return Kind(check, None, schema, encode=encode)


def weights() -> Kind:
    """A list of finite numbers, or None."""

    def check(name: str, value: Any) -> list[float] | None:
        return None if value is None else checks.numbers(name, value)

    schema = {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}]}
    return Kind(check, float, schema, "W", "+")


def callback() -> Kind:
    """Something that can be called, or None."""

    def check(name: str, value: Any) -> Any:
        if value is not None and not callable(value):
            raise InputError(f"{name} is {shown(value)}; expected something that can be called, or None.")
        return value

    return Kind(check, None)


def _part(name: str, value: Any) -> Any:
    """A prompt as a string, or a picture."""
    if isinstance(value, Mapping):
        if set(value) not in ({"text"}, {"image"}):
            raise InputError(f"{name} is {shown(value)}; expected a prompt as text, or a picture as image.")
        (key, value) = next(iter(value.items()))
        if key == "image":
            return Path(value) if isinstance(value, str) else value
    return checks.text(name, value) if isinstance(value, str) else value


def _share(word: str) -> float:
    try:
        return checks.share("it", float(word))
    except ValueError:
        raise ValueError(f"{shown(word)} is no number from 0 to 1") from None


def size(word: str) -> tuple[int, int]:
    """A width and a height in one word, such as 768x512. Raises ValueError for anything else."""
    found = re.fullmatch(r"([0-9]{1,9})[xX×]([0-9]{1,9})", word)
    if not found:
        raise ValueError(f"{shown(word)} is no size; expected width and height such as 768x512")
    return int(found[1]), int(found[2])

"""The command line that makes a picture again, from what the picture tells.

Whoever made the file may have written anything into it, and whoever reads the command may copy it into a shell. So
every value must be what its parameter takes, and the command's own parser must read the line as those values and no
more.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from kandinsky22 import checks
from kandinsky22.cli import flags
from kandinsky22.cli.printable import can_be_said, command_line
from kandinsky22.errors import InputError, shown
from kandinsky22.request.kinds import Kind
from kandinsky22.request.parameters import PARAMETERS

SUBJECTS: dict[str, dict[str, type]] = {
    "generate": {"prompt": str},
    "variations": {"image": str},
    "mix": {"images_and_prompts": list, "weights": list},
}
"""The commands that make pictures, and the arguments without which a picture cannot be made again."""

MOST_WORDS = 4096
"""Words of a line: argparse takes seconds to read more, since its time grows with their square."""


def command(name: str, given: Mapping[str, Any]) -> str:
    """The line for a shell that makes a picture again with command `name`, but for where its bundle lies.

    `given` are the arguments that the picture tells, of which unknown names are left out. Raises InputError where one
    of them cannot be said on a command line.
    """
    subjects = SUBJECTS[name]
    known = [each for each in (*subjects, *flags.declared(name)) if given.get(each) is not None]
    values = {each: _sayable(each, given[each]) for each in known}
    words = [word for each, value in values.items() if each not in subjects for word in flags.words(each, value)]
    if name == "mix":
        # The weights last: they take every word behind them.
        parts = [f"--{kind}={value}" for part in values["images_and_prompts"] for kind, value in part.items()]
        words = [*parts, *words, *flags.words("weights", values["weights"])]
    else:
        words = [*words, "--", values[next(iter(subjects))]]  # behind "--", a prompt may begin with a dash
    if len(words) > MOST_WORDS:
        raise InputError(f"it would have {len(words)} words; expected {MOST_WORDS} at most.")
    for word in words:
        if not can_be_said(word):
            raise InputError(f"no program can be given {shown(word)} as an argument.")
    _read_back(name, words, values)
    return f"kandinsky22 {name} BUNDLE {command_line(words)}"


def _sayable(name: str, value: Any) -> Any:
    """A value as its flag is given it. Raises InputError where it is not what the parameter takes."""
    kind = PARAMETERS[name].kind
    if kind.choices:
        checks.choice(name, value.lower() if isinstance(value, str) else value, kind.choices)
        return value
    checked = kind.check(name, value)
    if name == "images_and_prompts":
        return [_part(f"{name}[{place}]", each) for place, each in enumerate(value)]
    if kind.schema.get("type") == "string":
        return checked  # in its one form, as the command line reads it
    if kind.words in (2, "+"):
        return [_positional(each) for each in checked]
    # A switch is True or False, which its kind has checked, and `True` is a number as well.
    if not (kind.words == 0 or isinstance(value, str if kind.parse is str else int | float)):
        raise InputError(f"{name} is {shown(value)}, which a command line cannot say.")
    return value


def _part(name: str, value: Any) -> dict[str, str]:
    """A part of a mix: one prompt, or the path of one picture."""
    if not isinstance(value, dict) or len(value) != 1 or not all(isinstance(each, str) for each in value.values()):
        raise InputError(f"{name} is {shown(value)}, which a command line cannot say.")
    return value


def _positional(number: float) -> str:
    """A number without an exponent: argparse takes -1e-05 for an option."""
    return format(Decimal(repr(number)), "f")


def _read_back(name: str, words: Sequence[str], values: Mapping[str, Any]) -> None:
    """Raise InputError where the command's own parser reads `words` as anything but `values`, or as more."""
    parser = flags.RaisingParser(prog=name)
    importlib.import_module(f"kandinsky22.cli.{name}").add_arguments(parser)
    subject = next(iter(SUBJECTS[name]))
    least = {"generate": ["--", "x"], "variations": ["--", "x"], "mix": []}[name]
    expected = vars(parser.parse_intermixed_args(["BUNDLE", *least]))
    expected |= {"prompts": [values[subject]]} if name == "generate" else {}
    expected |= {"parts": values[subject]} if name == "mix" else {}
    for each, value in values.items():
        if value is not False and (each != subject or name == "variations"):
            expected[each] = _as_read(PARAMETERS[each].kind, value)
    if vars(parser.parse_intermixed_args(["BUNDLE", *words])) != expected:
        raise InputError("a command line would be read as something else.")


def _as_read(kind: Kind, value: Any) -> Any:
    """What the parser makes of a value."""
    if isinstance(value, list):
        return [float(each) for each in value]
    return value.lower() if kind.choices else value

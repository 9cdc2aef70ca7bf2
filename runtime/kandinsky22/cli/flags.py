"""Flags of the command line, derived from the declaration of every parameter."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from kandinsky22.bundle.reading import VERIFY
from kandinsky22.cli.parser import ArgumentParser
from kandinsky22.errors import InputError
from kandinsky22.request.kinds import Kind
from kandinsky22.request.parameters import PARAMETERS, TASKS, Parameter, Task
from kandinsky22.request.signatures import default_in_words

MACHINE = {"memory_limit": "--memory-limit", "low_memory": "--low-memory"}
"""Arguments of `Pipeline.load` that messages name, and their flags."""

FLAGS = {name: parameter.flag for name, parameter in PARAMETERS.items() if parameter.flag} | MACHINE


class RaisingParser(ArgumentParser):
    """argparse that raises what it would print as InputError."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise InputError(f"{message}.")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Raise it."""
        raise InputError(message or "it asks for help.")


def tasks_of(command: str) -> list[Task]:
    """The tasks that a command does."""
    return [task for task in TASKS.values() if task.command == command]


def declared(command: str) -> dict[str, tuple[Task, Parameter]]:
    """The parameters with flags that a command takes, and the first of its tasks that takes each."""
    found: dict[str, tuple[Task, Parameter]] = {}
    for task in tasks_of(command):
        for name, parameter in task.parameters().items():
            if parameter.flag:
                found.setdefault(name, (task, parameter))
    return {name: found[name] for name in PARAMETERS if name in found}


def add(group: argparse._ArgumentGroup, command: str, names: Iterable[str]) -> None:
    """Declare the flags of some parameters; what is not given does not appear among the options."""
    known = declared(command)
    for name in names:
        task, parameter = known[name]
        words = default_in_words(task, name, parameter)
        text = in_flags(parameter.help) + (f" ({words})" if words else "")
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        group.add_argument(str(parameter.flag), **options, **_form(parameter.kind))


def add_verify(group: argparse._ActionsContainer) -> None:
    """Declare the flag that says when files of the bundle are verified, of all commands that run it."""
    group.add_argument(
        "--verify",
        choices=VERIFY,
        default=VERIFY[0],
        help="read the bundle's files and compare their SHA-256 where they may have been written to since, or always "
        "(%(default)s)",
    )


def given(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The parameters that the command line gives, by their names."""
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def words(name: str, value: Any) -> list[str]:
    """A parameter and its value on the command line; none where its flag cannot say it."""
    flag = FLAGS[name]
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [flag, *map(str, value)]
    if isinstance(value, bool):
        return [flag] if value else []
    return [f"{flag}={value}"]


def in_flags(text: str) -> str:
    """A text about parameters for whoever knows their flags: `name` becomes --flag."""
    return re.sub(r"`(\w+)`", lambda found: FLAGS.get(found[1], found[1]), text)


def message_in_flags(message: str) -> str:
    """A message of the library for whoever knows the flags: what it is about, and names of several words."""
    about = re.match(r"([a-z_]+)(?=(\[\d+\])? (is|has|was|had|leaves|puts)\b|: )", message)
    if about and about[1] in FLAGS:
        message = FLAGS[about[1]] + message[about.end(1) :]
    message = re.sub(
        r"\b(without|use|beside) (\w+)\b", lambda found: f"{found[1]} {FLAGS.get(found[2], found[2])}", message
    )
    several = "|".join(name for name in FLAGS if "_" in name)
    return re.sub(rf"(?<!-)\b({several})\b", lambda found: FLAGS[found[1]], message)


def typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type of argparse from a parser whose ValueError says what was expected."""
    if parse in (int, float, str):
        return parse

    def read(word: str) -> Any:
        try:
            return parse(word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _form(kind: Kind) -> Mapping[str, Any]:
    """How argparse reads a kind."""
    if kind.words == 0:
        return {"action": "store_true"}
    form: dict[str, Any] = {"type": typed(kind.parse or str)}
    if kind.words is not None:
        form["nargs"] = kind.words
    return form | ({"choices": kind.choices} if kind.choices else {"metavar": kind.metavar})

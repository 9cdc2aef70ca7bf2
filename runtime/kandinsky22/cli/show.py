"""`kandinsky22 show`: how pictures were made."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from kandinsky22.cli import again, flags
from kandinsky22.cli.flags import message_in_flags
from kandinsky22.cli.printable import printable
from kandinsky22.errors import InputError, shown
from kandinsky22.request.parameters import PARAMETERS, TASKS, Task

WIDEST_NAME = 32
"""Characters of a name that values stand beside; behind a longer one, its own value stands further to the right."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("pictures", metavar="PICTURE", nargs="+", help="files that kandinsky22 wrote, PNG, JPEG or WebP")
    add("--json", action="store_true", help="print everything as it is stored, as JSON: a list for several pictures")


def run(options: argparse.Namespace) -> int:
    """Print it; the exit code, 1 where a picture does not tell. The others are told all the same."""
    told, problems = [], []
    for path in options.pictures:
        try:
            told.append(_told(path, options))
        except (InputError, OSError) as error:
            if len(options.pictures) == 1:
                raise
            problems.append(f"{path}: {error.strerror}." if isinstance(error, OSError) else str(error))
    if options.json:
        print(json.dumps(told if len(options.pictures) > 1 else told[0], indent=2))
    else:
        print("\n\n".join(told))
    sys.stdout.flush()
    for problem in problems:
        print("error:", printable(message_in_flags(problem)), file=sys.stderr)
    return 1 if problems else 0


def _told(path: str, options: argparse.Namespace) -> Any:
    """What a picture tells: text, or what is stored for --json."""
    from kandinsky22.images.writing import read_parameters

    parameters = read_parameters(path)
    if options.json:
        return {"path": path, **parameters} if len(options.pictures) > 1 else parameters
    text = _text(parameters)
    return f"{printable(path)}\n{text}" if len(options.pictures) > 1 else text


def _text(parameters: Mapping[str, Any]) -> str:
    """Parameters for reading, with the command that makes the picture again.

    Raises InputError where they were edited, so that there is none.
    """
    given, bundle, backend = (_mapping(parameters.get(key)) for key in ("arguments", "bundle", "backend"))
    # Names that are none of ours stand in quotes, so that they cannot pass for a row of ours.
    rows = {
        name.replace("_", " ") if name in PARAMETERS else repr(name): "-" if value is None else value
        for name, value in given.items()
    }
    if rows.get("scheduler") == "-":
        rows["scheduler"] = f"{bundle.get('scheduler')} (the checkpoint's own)"
    rows["bundle"] = f"{bundle.get('name')} ({bundle.get('precision')}, manifest {bundle.get('manifest_sha256')})"
    rows["made by"] = (
        f"kandinsky22 {parameters['kandinsky22']}, "
        f"{backend.get('name')} {backend.get('version')}, {backend.get('precision')}"
    )
    task = _task(parameters, given)
    try:
        rows["again"] = again.command(task.command, given)
    except InputError as error:
        rows["again"] = f"There is no command for it: {error}"
    told = [(printable(name), printable(str(value))) for name, value in rows.items()]
    width = min(max(len(name) for name, _ in told), WIDEST_NAME)
    return "\n".join(f"{name:{width}}  {value}" for name, value in told)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _task(parameters: Mapping[str, Any], given: Mapping[str, Any]) -> Task:
    """The task that the picture was made by.

    Raises InputError where no command does it, or where not all that it needs is `given`.
    """
    name = parameters.get("task", "text2img")
    # Pictures of version 0.1 name the command: its tasks share their flags.
    task = TASKS.get(name) or next(iter(flags.tasks_of(name)), None) if isinstance(name, str) else None
    if task is None or not task.command:
        known = ", ".join(each.name for each in TASKS.values() if each.command)
        raise InputError(
            f"The picture says that {shown(name)} made it; expected one of {known}: read what it says with --json."
        )
    needed = again.SUBJECTS[task.command]
    lacking = [each for each, kind in needed.items() if not isinstance(given.get(each), kind)]
    if lacking:
        raise InputError(
            f"The picture says that {task.name} made it and not from what, for its arguments, which were edited since, "
            f"lack {' and '.join(lacking)}; read what is left with --json."
        )
    return task

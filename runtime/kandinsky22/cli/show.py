"""`kandinsky22 show`: how pictures were made."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kandinsky22.cli import flags
from kandinsky22.cli.flags import message_in_flags
from kandinsky22.errors import InputError
from kandinsky22.request.parameters import TASKS, Task

SUBJECTS: dict[str, dict[str, type]] = {
    "generate": {"prompt": str},
    "variations": {"image": str},
    "mix": {"images_and_prompts": list, "weights": list},
}
"""The commands that make pictures, and the arguments without which a picture cannot be made again."""


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
        print("error:", message_in_flags(problem), file=sys.stderr)
    return 1 if problems else 0


def _told(path: str, options: argparse.Namespace) -> Any:
    """What a picture tells: text, or what is stored for --json."""
    from kandinsky22.images.writing import read_parameters

    parameters = read_parameters(path)
    if options.json:
        return {"path": path, **parameters} if len(options.pictures) > 1 else parameters
    text = _text(parameters)
    return f"{path}\n{text}" if len(options.pictures) > 1 else text


def _text(parameters: Mapping[str, Any]) -> str:
    """Parameters for reading, with the command that makes the picture again.

    Raises InputError where they were edited, so that there is none.
    """
    given, bundle, backend = (_mapping(parameters.get(key)) for key in ("arguments", "bundle", "backend"))
    rows = {name.replace("_", " "): "-" if value is None else value for name, value in given.items()}
    if rows.get("scheduler") == "-":
        rows["scheduler"] = f"{bundle.get('scheduler')} (the checkpoint's own)"
    rows["bundle"] = f"{bundle.get('name')} ({bundle.get('precision')}, manifest {bundle.get('manifest_sha256')})"
    rows["made by"] = (
        f"kandinsky22 {parameters['kandinsky22']}, "
        f"{backend.get('name')} {backend.get('version')}, {backend.get('precision')}"
    )
    rows["again"] = _command(_task(parameters, given), given)
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


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
            f"The picture says that {name!r} made it; expected one of {known}: read what it says with --json."
        )
    needed = SUBJECTS[task.command]
    lacking = [each for each, kind in needed.items() if not isinstance(given.get(each), kind)]
    if lacking:
        raise InputError(
            f"The picture says that {task.name} made it and not from what, for its arguments, which were edited since, "
            f"lack {' and '.join(lacking)}; read what is left with --json."
        )
    return task


def _command(task: Task, given: Mapping[str, Any]) -> str:
    """The command line that makes the picture again, but for where its bundle lies."""
    positional = next(iter(SUBJECTS[task.command]))
    known = flags.declared(task.command)
    said = {name: given[name] for name in known if given.get(name) is not None and name not in (positional, "weights")}
    words = [word for name, value in said.items() for word in flags.words(name, value)]
    if task.command == "mix":
        parts = [f"--{kind}={value}" for part in given["images_and_prompts"] for kind, value in _mapping(part).items()]
        return "kandinsky22 mix BUNDLE " + _quoted([*parts, *words, *flags.words("weights", given["weights"])])
    # Behind "--", a prompt may begin with a dash.
    return f"kandinsky22 {task.command} BUNDLE " + _quoted([*words, "--", given[positional]])


def _quoted(words: Sequence[str]) -> str:
    """Words for a shell; bytes of a file's name that are no text as bash and zsh read them, and `ls` writes them."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"'$'\\x{ord(byte[0]) - 0xDC00:02x}''", shlex.join(words))

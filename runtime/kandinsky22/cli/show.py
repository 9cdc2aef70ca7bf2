"""`kandinsky22 show`: how a picture was made."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from kandinsky22.errors import InputError

SUMMARY = "tell how a picture was made"
FLAGS = {
    "negative_prompt": "--negative-prompt",
    "width": "--width",
    "height": "--height",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "guidance_interval": "--guidance-interval",
    "prior_num_inference_steps": "--prior-steps",
    "prior_guidance_scale": "--prior-guidance",
    "seed": "--seed",
    "scheduler": "--scheduler",
    "eta": "--eta",
    "image": "--image",
    "strength": "--strength",
    "mask_image": "--mask",
    "overlay": "--overlay",
    "hint": "--hint",
    "depth_model": "--depth-model",
    "prior_image": "--prior-image",
    "prior_strength": "--prior-strength",
    "negative_prior_prompt": "--negative-prior-prompt",
}
"""The options of the commands that make pictures, by the argument of `Pipeline` that each sets."""
SUBJECTS: dict[str, dict[str, type]] = {
    "generate": {"prompt": str},
    "variations": {"image": str},
    "mix": {"images_and_prompts": list, "weights": list},
}
"""The commands that make pictures, and the arguments without which a picture cannot be made again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("picture", metavar="PICTURE", help="a file that kandinsky22 wrote, PNG, JPEG or WebP")
    parser.add_argument("--json", action="store_true", help="print everything as it is stored, as JSON")


def run(options: argparse.Namespace) -> int:
    """Print it; the exit code."""
    from kandinsky22.images.writing import read_parameters

    parameters = read_parameters(options.picture)
    print(json.dumps(parameters, indent=2) if options.json else _text(parameters))
    return 0


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


def _task(parameters: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The command that made the picture.

    Raises InputError where there is no such command, or where not all that it needs is `given`.
    """
    task = str(parameters.get("task", "generate"))
    if task not in SUBJECTS:
        raise InputError(
            f"The picture says that {task!r} made it; expected one of {', '.join(SUBJECTS)}: "
            f"read what it says with --json."
        )
    lacking = [name for name, kind in SUBJECTS[task].items() if not isinstance(given.get(name), kind)]
    if lacking:
        raise InputError(
            f"The picture says that {task} made it and not from what, for its arguments, which were edited since, "
            f"lack {' and '.join(lacking)}; read what is left with --json."
        )
    return task


def _command(task: str, given: Mapping[str, Any]) -> str:
    """The command line that makes the picture again, but for where its bundle lies."""
    positional = next(iter(SUBJECTS[task]))
    flags = [
        word
        for name, flag in FLAGS.items()
        if given.get(name) is not None and name != positional
        for word in _words(flag, given[name])
    ]
    if task == "mix":
        parts = [f"--{kind}={value}" for part in given["images_and_prompts"] for kind, value in _mapping(part).items()]
        weights = [str(weight) for weight in given["weights"]]
        return "kandinsky22 mix BUNDLE " + _quoted([*parts, *flags, "--weights", *weights])
    # Behind "--", a prompt may begin with a dash.
    return f"kandinsky22 {task} BUNDLE " + _quoted([*flags, "--", given[positional]])


def _words(flag: str, value: Any) -> list[str]:
    """An option on the command line."""
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [flag if value is True else f"{flag}={value}"]


def _quoted(words: Sequence[str]) -> str:
    """Words for a shell; bytes of a file's name that are no text as bash and zsh read them, and `ls` writes them."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"'$'\\x{ord(byte[0]) - 0xDC00:02x}''", shlex.join(words))

"""`kandinsky22 mix`: pictures between prompts and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from kandinsky22.cli import pictures
from kandinsky22.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Example: kandinsky22 mix BUNDLE --text 'a red fox' --image cat.png --weights 0.3 0.7. Defaults stand in "
        "parentheses. `kandinsky22 show PICTURE` tells how a picture was made."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that kandinsky22-export wrote")
    group = parser.add_argument_group("what is mixed")
    add = group.add_argument
    add("--text", metavar="PROMPT", dest="parts", action="append", type=_text, help="a prompt; may be repeated")
    add("--image", metavar="FILE", dest="parts", action="append", type=_image, help="a picture; may be repeated")
    pictures.add_arguments(parser, "mix")


def run(options: argparse.Namespace) -> int:
    """Make the pictures; the exit code."""
    parts = options.parts or []
    if not parts:
        raise InputError("There is nothing to mix; give prompts with --text and pictures with --image.")
    title = " ".join(filter(None, map(_title, parts)))
    equal = [1 / len(parts)] * len(parts)  # stored, so that the picture tells them
    given = {"images_and_prompts": parts, "weights": equal, **pictures.asked(options, "mix")}
    return pictures.make(options, pictures.calls_of_one_prompt(options, "mix", title, given))


def _title(part: dict[str, str]) -> str:
    """What a part adds to the file's name: nothing, where it is the prompt ""."""
    return part["text"] if "text" in part else Path(part["image"]).stem


def _text(value: str) -> dict[str, str]:
    return {"text": value}


def _image(value: str) -> dict[str, str]:
    return {"image": value}

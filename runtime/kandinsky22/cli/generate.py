"""`kandinsky22 generate`: pictures from prompts, with a picture, a mask or a depth map to lead them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from kandinsky22 import checks, files
from kandinsky22.cli import pictures
from kandinsky22.cli.pictures import Call
from kandinsky22.errors import InputError
from kandinsky22.request.request import Request

LEADING = {
    "controlnet": ("hint", "depth_model"),
    "inpaint": ("mask_image", "overlay"),
    "img2img": ("image", "strength"),
}
"""The tasks by the parameters that ask for them, in the order in which they decide."""

MOST_BYTES = 1 << 24
"""Most bytes of a file of prompts."""
MOST_PICTURES = 1 << 16
"""Most pictures of one run: more would fill the memory with names before the first is made."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Defaults stand in parentheses. The path of every picture is printed when it is written. What is finished "
        "stays when the rest is interrupted or fails. `kandinsky22 show PICTURE` tells how a picture was made."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that kandinsky22-export wrote")
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", help="what to paint; each makes pictures of its own")
    parser.add_argument("--prompts-file", metavar="FILE", help="more prompts, one a line, in UTF-8; - reads stdin")
    pictures.add_arguments(parser, "generate")


def run(options: argparse.Namespace) -> int:
    """Make the pictures; the exit code."""
    given = pictures.asked(options, "generate")
    return pictures.make(options, _with_depth_maps(_calls(options, _task(given), given)))


def _task(given: dict[str, Any]) -> str:
    """The task that the given parameters ask for. Raises InputError where they are of two."""
    if "mask_image" in given and "hint" in given:
        raise InputError("--mask and --hint are of two different tasks; leave one out.")
    return next((task for task, names in LEADING.items() if any(name in given for name in names)), "text2img")


def _calls(options: argparse.Namespace, task: str, given: dict[str, Any]) -> list[Call]:
    """What the arguments ask for. Raises InputError where it makes no sense."""
    texts = [*options.prompts, *(_read_prompts(options.prompts_file) if options.prompts_file else ())]
    if not texts:
        raise InputError("There is no prompt; give one after the bundle, or a file of them with --prompts-file.")
    count = len(texts) * getattr(options, "num_images_per_prompt", 1)
    if count > MOST_PICTURES:
        raise InputError(f"These are {count} pictures; one run makes {MOST_PICTURES} at most: give fewer prompts.")
    prompts = [text for text in texts for _ in range(getattr(options, "num_images_per_prompt", 1))]
    pairs = list(zip(checks.texts("prompt", prompts), pictures.seeds(options, len(prompts)), strict=True))
    return [
        _call(task, given, [text for text, _ in part], [seed for _, seed in part]) for part in pictures.parts(pairs)
    ]


def _call(task: str, given: dict[str, Any], prompts: Sequence[str], seeds: Sequence[int]) -> Call:
    return Call(Request.of(task, **{**given, "prompt": list(prompts), "seed": list(seeds)}), tuple(prompts))


def _with_depth_maps(calls: list[Call]) -> list[Call]:
    """The depth maps that a network makes are made once for all calls."""
    request = calls[0].request
    if request.given.get("depth_model") is None:
        return calls
    from kandinsky22.images import depth

    hint = depth.estimate(request.given["depth_model"], request.given["hint"])
    return [Call(call.request, call.titles, {"hint": hint, "depth_model": None}) for call in calls]


def _read_prompts(name: str) -> list[str]:
    """The lines of a file that are not blank; "-" is standard input."""
    data = _standard_input() if name == "-" else files.read_regular(name, MOST_BYTES)
    if len(data) > MOST_BYTES:
        raise InputError(f"Standard input has more than {MOST_BYTES >> 20} MiB of prompts; give fewer at a time.")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"The file of prompts {name} is not text in UTF-8 ({error.reason}).") from error
    return [line.strip() for line in lines if line.strip()]


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise InputError("Standard input is closed; give the prompts to it, or name a file with --prompts-file.")
    return sys.stdin.buffer.read(MOST_BYTES + 1)

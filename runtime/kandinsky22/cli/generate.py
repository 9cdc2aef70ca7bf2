"""`kandinsky22 generate`: pictures from prompts, with a picture, a mask or a depth map to lead them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from kandinsky22 import checks
from kandinsky22.cli import pictures
from kandinsky22.cli.pictures import Call
from kandinsky22.cli.prompts import read_prompts
from kandinsky22.errors import InputError
from kandinsky22.request.request import Request

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
    return pictures.make(options, pictures.with_depth_maps(_calls(options, pictures.leading_task(given), given)))


def _calls(options: argparse.Namespace, task: str, given: dict[str, Any]) -> list[Call]:
    """What the arguments ask for. Raises InputError where it makes no sense."""
    texts = [*options.prompts, *(read_prompts(options.prompts_file) if options.prompts_file else ())]
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

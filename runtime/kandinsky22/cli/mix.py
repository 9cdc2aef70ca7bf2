"""`kandinsky22 mix`: pictures between prompts and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22 import checks
from kandinsky22.cli import pictures
from kandinsky22.cli.pictures import Job
from kandinsky22.errors import InputError

if TYPE_CHECKING:
    from kandinsky22.options import Options
    from kandinsky22.pipeline import Output, Pipeline

SUMMARY = "blend prompts and pictures"


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
    add("--weights", metavar="W", nargs="+", type=float, help="one each, in their order (equal, with a sum of 1)")
    add("--negative-prompt", metavar="TEXT", default="", help="what the decoder is led away from (nothing)")
    add("--negative-prior-prompt", metavar="TEXT", help="what the prior is led away from (nothing)")
    group = parser.add_argument_group("pictures")
    pictures.add_decoder_arguments(group)
    pictures.add_prior_arguments(group)
    pictures.add_output_arguments(parser.add_argument_group("output"))
    pictures.add_machine_arguments(parser.add_argument_group("machine"))


def run(options: argparse.Namespace) -> int:
    """Make the pictures; the exit code."""
    parts = options.parts or []
    if not parts:
        raise InputError("There is nothing to mix; give prompts with --text and pictures with --image.")
    weights = checks.weights(options.weights or [1 / len(parts)] * len(parts), len(parts))
    settings = {
        "images_and_prompts": parts,
        "weights": weights,
        "negative_prompt": options.negative_prompt,
        "negative_prior_prompt": options.negative_prior_prompt,
        **pictures.decoder_settings(options),
        **pictures.prior_settings(options),
    }
    title = " ".join(filter(None, map(_title, parts)))
    jobs = [Job(title, seed, settings) for seed in checks.seeds(options.seed, options.num_images)]
    runs = sum("text" in part for part in parts)
    runs += bool(options.negative_prompt) or options.negative_prior_prompt is not None
    steps = runs * settings["prior_num_inference_steps"] + settings["num_inference_steps"]
    return pictures.make(options, "mix", jobs, _paint, steps)


def _paint(pipe: Pipeline, jobs: Sequence[Job], options: Options) -> Output:
    """The pictures of `jobs`, which differ in seeds alone."""
    parts = jobs[0].settings["images_and_prompts"]
    call: dict[str, Any] = {
        **jobs[0].settings,
        **options,
        "images_and_prompts": [part["text"] if "text" in part else Path(part["image"]) for part in parts],
        "num_images_per_prompt": len(jobs),
    }
    return pipe.mix(**call)


def _title(part: dict[str, str]) -> str:
    """What a part adds to the file's name: nothing, where it is the prompt ""."""
    return part["text"] if "text" in part else Path(part["image"]).stem


def _text(value: str) -> dict[str, str]:
    return {"text": value}


def _image(value: str) -> dict[str, str]:
    return {"image": value}

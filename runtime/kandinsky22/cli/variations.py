"""`kandinsky22 variations`: more pictures of what a picture shows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22 import checks
from kandinsky22.cli import pictures
from kandinsky22.cli.pictures import Job

if TYPE_CHECKING:
    from kandinsky22.options import Options
    from kandinsky22.pipeline import Output, Pipeline

SUMMARY = "make more pictures of what a picture shows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "Defaults stand in parentheses. `kandinsky22 show PICTURE` tells how a picture was made."
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that kandinsky22-export wrote")
    parser.add_argument("image", metavar="PICTURE", help="a PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF file")
    group = parser.add_argument_group("pictures")
    group.add_argument("--negative-prompt", metavar="TEXT", default="", help="what to lead away from (nothing)")
    pictures.add_decoder_arguments(group)
    pictures.add_prior_arguments(group)
    pictures.add_output_arguments(parser.add_argument_group("output"))
    pictures.add_machine_arguments(parser.add_argument_group("machine"))


def run(options: argparse.Namespace) -> int:
    """Make the pictures; the exit code."""
    settings = {
        "image": options.image,
        "negative_prompt": options.negative_prompt,
        **pictures.decoder_settings(options),
        **pictures.prior_settings(options),
    }
    seeds = checks.seeds(options.seed, options.num_images)
    jobs = [Job(Path(options.image).stem, seed, settings) for seed in seeds]
    steps = settings["num_inference_steps"]
    if options.negative_prompt:  # the prior is run for it alone
        steps += settings["prior_num_inference_steps"]
    return pictures.make(options, "variations", jobs, _paint, steps)


def _paint(pipe: Pipeline, jobs: Sequence[Job], options: Options) -> Output:
    """The pictures of `jobs`, which differ in seeds alone."""
    call: dict[str, Any] = {**jobs[0].settings, **options, "num_images_per_prompt": len(jobs)}
    # `Pipeline.variations` with a negative prompt, which it does not take.
    return pipe.mix([Path(call.pop("image"))], [1.0], **call)

"""`kandinsky22 variations`: more pictures of what a picture shows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kandinsky22 import arguments
from kandinsky22.commands import painting
from kandinsky22.commands.painting import Job

if TYPE_CHECKING:
    from kandinsky22.options import Callback
    from kandinsky22.pipeline import Output, Pipeline

SUMMARY = "make more pictures of what a picture shows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "Defaults stand in parentheses. `kandinsky22 show PICTURE` tells how a picture was made."
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that kandinsky22-export wrote")
    parser.add_argument("image", metavar="PICTURE", help="a PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF file")
    painting.add_decoder_arguments(parser.add_argument_group("pictures"))
    painting.add_output_arguments(parser.add_argument_group("output"))
    painting.add_machine_arguments(parser.add_argument_group("machine"))


def run(options: argparse.Namespace) -> int:
    """Make the pictures; the exit code."""
    settings = {"image": options.image, **painting.decoder_settings(options)}
    seeds = arguments.seeds(options.seed, options.num_images)
    jobs = [Job(Path(options.image).stem, seed, settings) for seed in seeds]
    return painting.make(options, "variations", jobs, _paint, settings["num_inference_steps"])


def _paint(pipe: Pipeline, jobs: Sequence[Job], on_step: Callback) -> Output:
    """The pictures of `jobs`, which differ in seeds alone."""
    return pipe.variations(
        **jobs[0].settings,
        num_images_per_prompt=len(jobs),
        seed=[job.seed for job in jobs],
        callback_on_step_end=on_step,
    )

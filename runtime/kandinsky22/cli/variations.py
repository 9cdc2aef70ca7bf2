"""`kandinsky22 variations`: more pictures of what a picture shows."""

from __future__ import annotations

import argparse
from pathlib import Path

from kandinsky22.cli import pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "Defaults stand in parentheses. `kandinsky22 show PICTURE` tells how a picture was made."
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that kandinsky22-export wrote")
    parser.add_argument("image", metavar="PICTURE", help="a PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF file")
    pictures.add_arguments(parser, "variations", own=("image",))


def run(options: argparse.Namespace) -> int:
    """Make the pictures; the exit code."""
    given = pictures.asked(options, "variations")
    title = Path(options.image).stem
    return pictures.make(options, pictures.calls_of_one_prompt(options, "variations", title, given))

"""The command line, run in this process, and copies of a bundle to damage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from kandinsky22.bundle.bundle import Bundle
from kandinsky22.cli.main import main

QUICK = ("--size", "64x64", "--steps", "2", "--prior-steps", "2", "--backend", "onnxruntime", "--threads", "1")
"""The fewest steps, on the backend that computes alike everywhere."""


class Outcome(NamedTuple):
    """Of a command: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `kandinsky22` with the arguments given."""

    def run(*arguments: object) -> Outcome:
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as exit_:  # argparse
            code = exit_.code if isinstance(exit_.code, int) else 1
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def bundle_copy(linkable_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own. Its files are links: replace them, do not write into them."""
    return Path(shutil.copytree(linkable_bundle, tmp_path / "copy", copy_function=os.link))


@pytest.fixture
def handmade_copy(handmade_bundle: Bundle, tmp_path: Path) -> Bundle:
    """The handmade bundle as the test's own, to lay plans in."""
    return Bundle(shutil.copytree(handmade_bundle.path, tmp_path / "handmade"))

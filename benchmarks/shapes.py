"""The classifier and the prompts of checkpoints/shapes.

The packages `recipe` and `scores` there import each other by these names, as its scripts see them. They are loaded by
their place, so that no folder has to be put on the import path.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

from benchmarks.command import ROOT

FOLDER = ROOT / "checkpoints" / "shapes"
SIDE = 128
"""Pixels a side of its pictures."""


def _load_package(name: str) -> None:
    """Make a package of the folder known by its name."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / name / "__init__.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{FOLDER / name} is no package")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


if TYPE_CHECKING:
    from recipe import classifier as classifier
    from scores import text2img as text2img
    from scores.painters import Diffusers
else:
    for _name in ("recipe", "scores"):
        _load_package(_name)
    classifier = importlib.import_module("recipe.classifier")
    text2img = importlib.import_module("scores.text2img")


def diffusers_painter() -> Diffusers:
    """Who paints with diffusers. It is imported here, since that takes seconds."""
    from diffusers.utils import logging
    from transformers.utils import logging as logging_of_transformers

    from scores.painters import Diffusers

    for each in (logging, logging_of_transformers):
        each.disable_progress_bar()
    return Diffusers(FOLDER)

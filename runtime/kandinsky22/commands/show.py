"""`kandinsky22 show`: how a picture was made."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from typing import Any

SUMMARY = "tell how a picture was made"
FLAGS = {
    "negative_prompt": "--negative-prompt",
    "width": "--width",
    "height": "--height",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
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
    "negative_prior_prompt": "--negative-prior-prompt",
}
"""The options of the commands that make pictures, by the argument of `Pipeline` that each sets."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("picture", metavar="PICTURE", help="a file that kandinsky22 wrote, PNG, JPEG or WebP")
    parser.add_argument("--json", action="store_true", help="print everything as it is stored, as JSON")


def run(options: argparse.Namespace) -> int:
    """Print it; the exit code."""
    from kandinsky22.images import read_parameters

    parameters = read_parameters(options.picture)
    print(json.dumps(parameters, indent=2, ensure_ascii=False) if options.json else _text(parameters))
    return 0


def _text(parameters: Mapping[str, Any]) -> str:
    """Parameters for reading, with the command that makes the picture again."""
    given, bundle, backend = (_mapping(parameters.get(key)) for key in ("arguments", "bundle", "backend"))
    rows = {name.replace("_", " "): "-" if value is None else value for name, value in given.items()}
    if rows.get("scheduler") == "-":
        rows["scheduler"] = f"{bundle.get('scheduler')} (the checkpoint's own)"
    rows["bundle"] = f"{bundle.get('name')} ({bundle.get('precision')}, manifest {bundle.get('manifest_sha256')})"
    rows["made by"] = (
        f"kandinsky22 {parameters['kandinsky22']}, "
        f"{backend.get('name')} {backend.get('version')}, {backend.get('precision')}"
    )
    rows["again"] = _command(str(parameters.get("task", "generate")), given)
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _command(task: str, given: Mapping[str, Any]) -> str:
    """The command line that makes the picture again, but for where its bundle lies."""
    positional = {"generate": "prompt", "variations": "image"}.get(task)
    flags = [
        flag if given[name] is True else f"{flag}={given[name]}"
        for name, flag in FLAGS.items()
        if given.get(name) is not None and name != positional
    ]
    if task == "mix":
        parts = [f"--{kind}={value}" for part in given["images_and_prompts"] for kind, value in part.items()]
        weights = [str(weight) for weight in given["weights"]]
        return "kandinsky22 mix BUNDLE " + shlex.join([*parts, *flags, "--weights", *weights])
    # Behind "--", a prompt may begin with a dash.
    return f"kandinsky22 {task} BUNDLE " + shlex.join([*flags, "--", str(given.get(positional or "prompt", ""))])

"""`kandinsky22 generate`: pictures from prompts, with a picture, a mask or a depth map to lead them."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22 import checks
from kandinsky22.cli import pictures
from kandinsky22.cli.pictures import Job
from kandinsky22.errors import InputError

if TYPE_CHECKING:
    from kandinsky22.arrays import Floats
    from kandinsky22.options import Options
    from kandinsky22.pipeline import Output, Pipeline

SUMMARY = "make pictures from prompts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Defaults stand in parentheses. The path of every picture is printed when it is written. What is finished "
        "stays when the rest is interrupted or fails. `kandinsky22 show PICTURE` tells how a picture was made."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that kandinsky22-export wrote")
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", help="what to paint; each makes pictures of its own")
    group = parser.add_argument_group("pictures")
    add = group.add_argument
    add("--prompts-file", metavar="FILE", help="more prompts, one a line, in UTF-8; - reads standard input")
    add("--negative-prompt", metavar="TEXT", help='what to lead away from; "" is not the same as none')
    pictures.add_decoder_arguments(group)
    pictures.add_prior_arguments(group)
    _add_input_arguments(parser.add_argument_group("inputs"))
    pictures.add_output_arguments(parser.add_argument_group("output"))
    pictures.add_machine_arguments(parser.add_argument_group("machine"))


def _add_input_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--image", metavar="FILE", help="a picture to change, to repaint in part (--mask), or to begin from (--hint)")
    add("--strength", metavar="SHARE", type=pictures.share, help=f"of --image that is given up ({checks.STRENGTH})")
    add("--mask", metavar="FILE", help="of the size of --image, white where it is to be repainted")
    add("--overlay", action="store_true", help="put the pixels of --image back where --mask is black")
    add("--hint", metavar="FILE", help="a depth map to follow, near is bright")
    add(
        "--depth-model",
        metavar="ONNX",
        help="take --hint for a picture, and make its depth map with this network (inverse depth, as MiDaS, DPT and "
        "Depth Anything give it; input (1, 3, H, W) normalised as ImageNet)",
    )
    add("--prior-image", metavar="FILE", help="a picture whose content, not its pixels, is changed towards the prompt")
    add(
        "--prior-strength",
        metavar="SHARE",
        type=pictures.share,
        help=f"of --prior-image that is given up, 0 to 1 ({checks.STRENGTH})",
    )


def run(options: argparse.Namespace) -> int:
    """Make the pictures; the exit code."""
    settings = _settings(options)
    jobs = _jobs(options, settings)
    return pictures.make(options, "generate", jobs, functools.partial(_paint, hint=_Hint(options)), _steps(settings))


def _steps(settings: dict[str, Any]) -> int:
    """How many steps of the prior and the decoder a batch takes."""
    prior, decoder = settings["prior_num_inference_steps"], settings["num_inference_steps"]
    return int(prior * settings.get("prior_strength", 1)) + int(decoder * settings.get("strength", 1))


class _Hint:
    """The depth map to follow: a file, or what a depth model makes of it, once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._file, self._model = options.hint, options.depth_model

    @functools.cached_property
    def value(self) -> str | Floats:
        """What `Pipeline.controlnet` takes."""
        if self._model is None:
            return str(self._file)
        from kandinsky22.images import depth

        return depth.estimate(self._model, self._file)


def _paint(pipe: Pipeline, jobs: Sequence[Job], options: Options, *, hint: _Hint) -> Output:
    """The pictures of `jobs`, which differ in prompts and seeds alone, by the task that their settings ask for."""
    own = ("prompt", "negative_prompt", "depth_model")
    shared = {name: value for name, value in jobs[0].settings.items() if name not in own}
    negatives = [job.settings["negative_prompt"] for job in jobs if job.settings["negative_prompt"] is not None]
    call: dict[str, Any] = {
        **shared,
        **options,
        "prompt": [job.settings["prompt"] for job in jobs],
        "negative_prompt": negatives or None,
    }
    if "hint" in call:
        return pipe.controlnet(**{**call, "hint": hint.value})
    if "mask_image" in call:
        return pipe.inpaint(**call)
    return pipe.img2img(**call) if "image" in call else pipe(**call)


def _check_together(options: argparse.Namespace) -> None:
    """Raise InputError where the inputs do not fit together."""
    if options.mask is not None and options.image is None:
        raise InputError("--mask says where a picture is repainted; give the picture too, with --image.")
    if options.mask is not None and options.hint is not None:
        raise InputError("--mask and --hint are of two different tasks; leave one out.")
    if options.overlay and options.mask is None:
        raise InputError("--overlay puts back what a mask keeps; give the mask too, with --mask.")
    if options.strength is not None and (options.image is None or options.mask is not None):
        raise InputError("--strength goes with --image, and not with --mask: a mask says what is kept.")
    if options.depth_model is not None and options.hint is None:
        raise InputError("--depth-model makes a depth map of --hint; give the picture with --hint.")
    if options.prior_strength is not None and options.prior_image is None:
        raise InputError("--prior-strength is of --prior-image; give that picture too, or leave --prior-strength out.")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What all pictures share, in the words of `Pipeline`. Raises InputError where it makes no sense."""
    _check_together(options)
    settings = {**pictures.decoder_settings(options), **pictures.prior_settings(options)}
    given = {
        "image": options.image,
        "mask_image": options.mask,
        "hint": options.hint,
        "depth_model": options.depth_model,
        "overlay": options.overlay or None,
        "prior_image": options.prior_image,
    }
    settings |= {name: value for name, value in given.items() if value is not None}
    if options.image is not None and options.mask is None:
        settings["strength"] = checks.STRENGTH if options.strength is None else options.strength
    if options.prior_image is not None:
        settings["prior_strength"] = checks.STRENGTH if options.prior_strength is None else options.prior_strength
        if int(options.prior_steps * settings["prior_strength"]) < 1:
            raise InputError(
                f"--prior-strength {settings['prior_strength']:g} leaves none of {options.prior_steps} steps of the "
                f"prior; ask for more --prior-steps or a larger --prior-strength."
            )
    return settings


def _jobs(options: argparse.Namespace, settings: dict[str, Any]) -> list[Job]:
    """What the arguments ask for, one picture a job. Raises InputError where it makes no sense."""
    given = [*options.prompts, *(_read_prompts(options.prompts_file) if options.prompts_file else ())]
    if not given:
        raise InputError("There is no prompt; give one after the bundle, or a file of them with --prompts-file.")
    prompts = [prompt for prompt in checks.prompts(given) for _ in range(options.num_images)]
    negatives: Sequence[str | None] = checks.negative_prompts(options.negative_prompt, len(prompts)) or [None] * len(
        prompts
    )
    seeds = checks.seeds(options.seed, len(prompts))
    return [
        Job(prompt, seed, {"prompt": prompt, "negative_prompt": negative, **settings})
        for prompt, negative, seed in zip(prompts, negatives, seeds, strict=True)
    ]


def _read_prompts(name: str) -> list[str]:
    """The lines of a file that are not blank; "-" is standard input."""
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"The file of prompts {name} is not text in UTF-8 ({error.reason}).") from error
    return [line.strip() for line in lines if line.strip()]

"""What the commands that make pictures share: their arguments, and the way from jobs to files."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kandinsky22 import checks
from kandinsky22.errors import InputError

if TYPE_CHECKING:
    import PIL.Image

    from kandinsky22.backends import Availability
    from kandinsky22.cli.output import Places
    from kandinsky22.options import Options
    from kandinsky22.pipeline import Output, Pipeline

INTERRUPTED = 130
AT_ONCE = 64
"""Pictures that one call of a task is for. Their inputs are encoded once, and they are kept until its end."""
SCHEDULERS = ("ddpm", "ddim", "dpm++", "dpm++-karras")


@dataclass(frozen=True)
class Job:
    """One picture to make: everything that it depends on but the bundle and the machine.

    `title` is for its file's name. `settings` are what `Pipeline` takes beside the seed, as JSON can hold it.
    """

    title: str
    seed: int
    settings: dict[str, Any]

    def parameters(self, size: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """What makes this picture again, which has come out with this width and height."""
        width, height = size
        return {**self.settings, "seed": self.seed, "width": width, "height": height}


class Paint(Protocol):
    """How a command makes the pictures of some jobs, in one call of a task."""

    def __call__(self, pipe: Pipeline, jobs: Sequence[Job], options: Options) -> Output:
        """The pictures of `jobs`. `options` go on to the task: seeds, batches and callbacks."""


def add_decoder_arguments(group: argparse._ArgumentGroup) -> None:
    """What steers the decoder, and the seeds."""
    add = group.add_argument
    steps = whole(1, checks.MAX_STEPS)
    add("--num-images", metavar="N", type=whole(1, checks.MAX_PICTURES), default=1, help="pictures (%(default)s)")
    add("--size", metavar="WxH", type=_size, help="width and height in one, such as 768x512")
    add("--width", metavar="PIXELS", type=int, help="rounded up to a multiple of 64 (the training size)")
    add("--height", metavar="PIXELS", type=int, help="rounded up to a multiple of 64 (the training size)")
    add("--steps", metavar="N", type=steps, default=50, help="denoising steps of the decoder (%(default)s)")
    add("--guidance", metavar="SCALE", type=scale, default=4.0, help="of the decoder; none at 1 or below (%(default)s)")
    add(
        "--guidance-interval",
        metavar=("FROM", "TO"),
        nargs=2,
        type=share,
        default=(0.0, 1.0),
        help="shares of --steps that guidance begins and ends at; a step without it takes half the time (all: 0 1)",
    )
    add(
        "--seed",
        metavar="N",
        type=whole(0, checks.MAX_SEED),
        help="of the first picture; the next ones count on from it (drawn at random)",
    )
    add("--scheduler", choices=SCHEDULERS, type=str.lower, help="of the decoder (the checkpoint's own)")
    add("--eta", metavar="SHARE", type=float, default=0.0, help="fresh noise in DDIM, 0 to 1 (%(default)s)")


def add_prior_arguments(group: argparse._ArgumentGroup) -> None:
    """What steers the prior."""
    add = group.add_argument
    steps = whole(1, checks.MAX_STEPS)
    add("--prior-steps", metavar="N", type=steps, default=25, help="denoising steps of the prior (%(default)s)")
    add("--prior-guidance", metavar="SCALE", type=scale, default=4.0, help="of the prior (%(default)s)")


def add_output_arguments(group: argparse._ArgumentGroup) -> None:
    """Where pictures go, and what is told."""
    add = group.add_argument
    add(
        "-o",
        "--output",
        metavar="PLACE",
        default=".",
        help="a folder, made where it is missing (this one); or a file, whose suffix tells the format; {prompt}, "
        "{seed} and {index} in its name tell several pictures apart",
    )
    add("--format", choices=("png", "jpeg", "webp"), help="of the files in a folder (png)")
    add("--quality", metavar="N", type=whole(1, 100), default=95, help="of JPEG and WebP, 1 to 100 (%(default)s)")
    add(
        "--force",
        action="store_true",
        help="replace pictures of the same name; otherwise a picture in a folder gets a free name, and the name of a "
        "file that exists is refused",
    )
    add("--json", action="store_true", help="print one JSON object at the end instead of paths")
    add("--quiet", action="store_true", help="no progress bar")


def add_machine_arguments(group: argparse._ArgumentGroup) -> None:
    """What the pictures are made with."""
    add = group.add_argument
    add("--backend", metavar="NAME", default="auto", help="see `kandinsky22 doctor` (%(default)s: the fastest here)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="(%(default)s: the backend's best)")
    add("--threads", metavar="N", type=whole(1, 1024), help="of the processor (the backend's choice)")
    add("--low-memory", action="store_true", help="keep one network in memory at a time; slower with several batches")
    add(
        "--memory-limit",
        metavar="GIB",
        type=_memory,
        default="auto",
        help="refuse what will take more by the estimate; none to try everything (%(default)s: what is free)",
    )
    add(
        "--batch-size",
        metavar="N",
        type=whole(1, checks.MAX_PICTURES),
        default=1,
        help="pictures made at once: more memory, and the last bits of a picture may differ (%(default)s)",
    )


def decoder_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `add_decoder_arguments` in the words of `Pipeline`, but for the seed and the number."""
    width, height = _width_and_height(options)
    return {
        "height": height,
        "width": width,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "guidance_interval": checks.interval("--guidance-interval", options.guidance_interval),
        "scheduler": options.scheduler and options.scheduler.upper(),
        "eta": options.eta,
    }


def prior_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `add_prior_arguments` in the words of `Pipeline`."""
    return {
        "prior_num_inference_steps": options.prior_steps,
        "prior_guidance_scale": options.prior_guidance,
    }


def make(options: argparse.Namespace, task: str, jobs: Sequence[Job], paint: Paint, steps: int) -> int:
    """Make and write the pictures of `jobs`; the exit code. `steps` is how many a batch takes, for the progress bar.

    `task` is stored with each picture: the name of what made it.
    """
    from kandinsky22 import backends
    from kandinsky22.bundle.bundle import Bundle
    from kandinsky22.cli.output import Places
    from kandinsky22.pipeline import Pipeline

    names = [(job.title, job.seed) for job in jobs]
    places = Places(options.output, options.format, names, quality=options.quality, force=options.force)
    bundle = Bundle(options.bundle)
    backend = backends.get(options.backend, bundle).availability(bundle)
    told: dict[str, Any] = {"pictures": [], "timings": {}}
    machine = {
        "precision": options.precision,
        "threads": options.threads,
        "low_memory": options.low_memory,
        "memory_limit": options.memory_limit,
    }
    try:
        with Pipeline.load(options.bundle, backend.name, **machine) as pipe, places.ready():
            origin = {"task": task, **_origin(pipe, jobs[0].settings, backend, options.precision)}
            _make(pipe, jobs, paint, steps, origin, places, options, told)
    except KeyboardInterrupt:
        written = len(told["pictures"])
        count = "1 picture was" if written == 1 else f"{written} pictures were"
        print(f"Stopped; {count} written.", file=sys.stderr)
        return INTERRUPTED
    finally:
        if options.json:
            print(json.dumps(told, indent=2))
    return 0


def _make(
    pipe: Pipeline,
    jobs: Sequence[Job],
    paint: Paint,
    steps: int,
    origin: Mapping[str, Any],
    places: Places,
    options: argparse.Namespace,
    told: dict[str, Any],
) -> None:
    """Make and write the pictures batch by batch; what --json tells goes to `told`."""
    from tqdm import tqdm

    places.check({"arguments": job.parameters(), **origin} for job in jobs)
    calls = [jobs[start : start + AT_ONCE] for start in range(0, len(jobs), AT_ONCE)]
    batches = sum(-(-len(call) // options.batch_size) for call in calls)
    # `disable=None`: no bar where stderr is no terminal.
    with tqdm(total=batches * steps, unit="step", disable=True if options.quiet else None) as bar:

        def advance(*_: object) -> None:
            bar.update()

        def write(_: int, pictures: Sequence[PIL.Image.Image]) -> None:
            for picture in pictures:
                index = len(told["pictures"])
                parameters = {"arguments": jobs[index].parameters(picture.size), **origin}
                path = places.save(index, picture, parameters)
                told["pictures"].append(_told(path, picture, jobs[index]))
                if not options.json:
                    tqdm.write(str(path), file=sys.stdout)
                    sys.stdout.flush()

        for call in calls:
            shared: Any = {
                "seed": [job.seed for job in call],
                "batch_size": options.batch_size,
                "callback_on_step_end": advance,
                "prior_callback_on_step_end": advance,
                "callback_on_batch_end": write,
            }
            for stage, seconds in paint(pipe, call, shared).timings.items():
                told["timings"][stage] = told["timings"].get(stage, 0.0) + seconds


def _told(path: Path, picture: PIL.Image.Image, job: Job) -> dict[str, Any]:
    """What --json tells about a picture."""
    return {
        "path": str(path),
        "prompt": job.title,
        "seed": job.seed,
        "width": picture.width,
        "height": picture.height,
    }


def _origin(pipe: Pipeline, settings: Mapping[str, Any], backend: Availability, precision: str) -> dict[str, Any]:
    """What a picture depends on beside its arguments, `settings`: the bundle, and what ran it."""
    from kandinsky22.bundle.bundle import MANIFEST
    from kandinsky22.bundle.checksums import sha256

    manifest = pipe.bundle.manifest
    role = "controlnet" if "hint" in settings else "inpaint" if "mask_image" in settings else "decoder"
    return {
        "bundle": {
            "name": manifest.name,
            "precision": manifest.precision,
            "source": manifest.source,
            "scheduler": manifest.schedulers.get(role, {}).get("_class_name"),
            "manifest_sha256": sha256(pipe.bundle.path / MANIFEST),
        },
        "backend": {
            "name": backend.name,
            "version": backend.version,
            "precision": backend.precision if precision == "auto" else precision,
        },
    }


def _width_and_height(options: argparse.Namespace) -> tuple[int | None, int | None]:
    """What was asked for; None leaves a side to the bundle."""
    if options.size is None:
        return options.width, options.height
    if options.width is not None or options.height is not None:
        raise InputError("--size gives both the width and the height; leave --width and --height out.")
    width, height = options.size
    return width, height


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)[xX×](\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected width and height such as 768x512")
    return int(found[1]), int(found[2])


def whole(low: int, high: int) -> Callable[[str], int]:
    """A type of argument: whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            return checks.whole("it", int(text), low, high)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}") from error

    return parse


def scale(text: str) -> float:
    """A type of argument: guidance scales."""
    try:
        return checks.scale("it", float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number of 0 or more") from error


def share(text: str) -> float:
    """A type of argument: numbers from 0 to 1."""
    try:
        return checks.share("it", float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1") from error


def _memory(text: str) -> float | str | None:
    if text in ("auto", "none"):
        return None if text == "none" else text
    try:
        return checks.positive("it", float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto, none nor a number of GiB above 0") from error

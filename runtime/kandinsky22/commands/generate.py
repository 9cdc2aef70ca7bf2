"""`kandinsky22 generate`: pictures from prompts."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22 import arguments
from kandinsky22.errors import InputError

if TYPE_CHECKING:
    import PIL.Image

    from kandinsky22.arrays import Array
    from kandinsky22.backends import Availability
    from kandinsky22.commands.places import Places
    from kandinsky22.pipeline import Pipeline

SUMMARY = "make pictures from prompts"
INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """One picture to make: everything that it depends on but the bundle and the machine, as `Pipeline` takes it."""

    prompt: str
    negative_prompt: str | None
    seed: int
    settings: dict[str, Any]

    def parameters(self, size: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """What makes this picture again, which has come out with this width and height: `pipe(**parameters)`."""
        width, height = size
        own = {"prompt": self.prompt, "negative_prompt": self.negative_prompt, "seed": self.seed}
        return own | self.settings | {"width": width, "height": height}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Defaults stand in parentheses. The path of every picture is printed when it is written. What is finished "
        "stays when the rest is interrupted or fails. `kandinsky22 show PICTURE` tells how a picture was made."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that kandinsky22-export wrote")
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", help="what to paint; each makes pictures of its own")
    _add_picture_arguments(parser.add_argument_group("pictures"))
    _add_output_arguments(parser.add_argument_group("output"))
    _add_machine_arguments(parser.add_argument_group("machine"))


def _add_picture_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    steps, scale, count = _whole(1, arguments.MAX_STEPS), _scale, _whole(1, arguments.MAX_PICTURES)
    add("--prompts-file", metavar="FILE", help="more prompts, one a line, in UTF-8; - reads standard input")
    add("--negative-prompt", metavar="TEXT", help='what to lead away from; "" is not the same as none')
    add("--num-images", metavar="N", type=count, default=1, help="pictures a prompt (%(default)s)")
    add("--size", metavar="WxH", type=_size, help="width and height in one, such as 768x512")
    add("--width", metavar="PIXELS", type=int, help="rounded up to a multiple of 64 (the training size)")
    add("--height", metavar="PIXELS", type=int, help="rounded up to a multiple of 64 (the training size)")
    add("--steps", metavar="N", type=steps, default=50, help="denoising steps of the decoder (%(default)s)")
    add("--guidance", metavar="SCALE", type=scale, default=4.0, help="of the decoder; none at 1 or below (%(default)s)")
    add("--prior-steps", metavar="N", type=steps, default=25, help="denoising steps of the prior (%(default)s)")
    add("--prior-guidance", metavar="SCALE", type=scale, default=4.0, help="of the prior (%(default)s)")
    add(
        "--seed",
        metavar="N",
        type=_whole(0, arguments.MAX_SEED),
        help="of the first picture; the next ones count on from it (drawn at random)",
    )
    add("--scheduler", choices=("ddpm", "ddim", "dpm++"), type=str.lower, help="of the decoder (the checkpoint's own)")
    add("--eta", metavar="SHARE", type=float, default=0.0, help="fresh noise in DDIM, 0 to 1 (%(default)s)")


def _add_output_arguments(group: argparse._ArgumentGroup) -> None:
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
    add("--quality", metavar="N", type=_whole(1, 100), default=95, help="of JPEG and WebP, 1 to 100 (%(default)s)")
    add(
        "--force",
        action="store_true",
        help="replace pictures of the same name; otherwise a picture in a folder gets a free name, and the name of a "
        "file that exists is refused",
    )
    add("--json", action="store_true", help="print one JSON object at the end instead of paths")
    add("--quiet", action="store_true", help="no progress bar")


def _add_machine_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--backend", metavar="NAME", default="auto", help="see `kandinsky22 doctor` (%(default)s: the fastest here)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="(%(default)s: the backend's best)")
    add("--threads", metavar="N", type=_whole(1, 1024), help="of the processor (the backend's choice)")
    add("--low-memory", action="store_true", help="keep one network in memory at a time; slower with several batches")
    add(
        "--batch-size",
        metavar="N",
        type=_whole(1, arguments.MAX_PICTURES),
        default=1,
        help="pictures made at once: more memory, and the last bits of a picture may differ (%(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Make the pictures; the exit code."""
    from kandinsky22 import backends
    from kandinsky22.bundle import Bundle
    from kandinsky22.commands.places import Places
    from kandinsky22.pipeline import Pipeline

    jobs = _jobs(options)
    names = [(job.prompt, job.seed) for job in jobs]
    places = Places(options.output, options.format, names, quality=options.quality, force=options.force)
    bundle = Bundle(options.bundle)
    backend = backends.get(options.backend, bundle).availability(bundle)
    written: list[dict[str, Any]] = []
    machine = {"precision": options.precision, "threads": options.threads, "low_memory": options.low_memory}
    try:
        with Pipeline.load(options.bundle, backend.name, **machine) as pipe, places.ready():
            _generate(pipe, jobs, _origin(pipe, backend, options.precision), places, options, written)
    except KeyboardInterrupt:
        count = "1 picture was" if len(written) == 1 else f"{len(written)} pictures were"
        print(f"Stopped; {count} written.", file=sys.stderr)
        return INTERRUPTED
    finally:
        if options.json:
            print(json.dumps({"pictures": written}, indent=2, ensure_ascii=False))
    return 0


def _generate(
    pipe: Pipeline,
    jobs: Sequence[Job],
    origin: Mapping[str, Any],
    places: Places,
    options: argparse.Namespace,
    written: list[dict[str, Any]],
) -> None:
    """Make and write the pictures batch by batch; what is told about each goes to `written`."""
    from tqdm import tqdm

    places.check({"arguments": job.parameters(), **origin} for job in jobs)
    steps = sum(jobs[0].settings[name] for name in ("prior_num_inference_steps", "num_inference_steps"))
    batches = [
        range(len(jobs))[start : start + options.batch_size] for start in range(0, len(jobs), options.batch_size)
    ]
    # `disable=None`: no bar where stderr is no terminal.
    with tqdm(total=len(batches) * steps, unit="step", disable=True if options.quiet else None) as bar:

        def advance(pipeline: Pipeline, step: int, timestep: int, tensors: dict[str, Array]) -> None:
            bar.update()

        for batch in batches:
            out = pipe(
                **_call([jobs[i] for i in batch]), callback_on_step_end=advance, prior_callback_on_step_end=advance
            )
            for i, picture in zip(batch, out.images, strict=True):
                path = places.save(i, picture, {"arguments": jobs[i].parameters(picture.size), **origin})
                written.append(_told(path, picture, jobs[i], out.timings))
                if not options.json:
                    tqdm.write(str(path), file=sys.stdout)
                    sys.stdout.flush()


def _call(jobs: Sequence[Job]) -> dict[str, Any]:
    """The arguments of one call that makes all of `jobs`."""
    negatives = [job.negative_prompt for job in jobs if job.negative_prompt is not None]
    return {
        "prompt": [job.prompt for job in jobs],
        "negative_prompt": negatives or None,
        "seed": [job.seed for job in jobs],
        **jobs[0].settings,
    }


def _told(path: Path, picture: PIL.Image.Image, job: Job, timings: dict[str, float]) -> dict[str, Any]:
    """What --json tells about a picture; `timings` are those of its batch."""
    return {
        "path": str(path),
        "prompt": job.prompt,
        "seed": job.seed,
        "width": picture.width,
        "height": picture.height,
        "timings": timings,
    }


def _origin(pipe: Pipeline, backend: Availability, precision: str) -> dict[str, Any]:
    """What a picture depends on beside its arguments: the bundle, and what ran it."""
    from kandinsky22.bundle import MANIFEST, sha256

    manifest = pipe.bundle.manifest
    return {
        "bundle": {
            "name": manifest.name,
            "precision": manifest.precision,
            "source": manifest.source,
            "scheduler": manifest.schedulers.get("decoder", {}).get("_class_name"),
            "manifest_sha256": sha256(pipe.bundle.path / MANIFEST),
        },
        "backend": {
            "name": backend.name,
            "version": backend.version,
            "precision": backend.precision if precision == "auto" else precision,
        },
    }


def _jobs(options: argparse.Namespace) -> list[Job]:
    """What the arguments ask for, one picture a job. Raises InputError where it makes no sense."""
    given = [*options.prompts, *(_read_prompts(options.prompts_file) if options.prompts_file else ())]
    if not given:
        raise InputError("There is no prompt; give one after the bundle, or a file of them with --prompts-file.")
    prompts = [prompt for prompt in arguments.prompts(given) for _ in range(options.num_images)]
    negatives: Sequence[str | None] = arguments.negative_prompts(options.negative_prompt, len(prompts)) or [None] * len(
        prompts
    )
    seeds = arguments.seeds(options.seed, len(prompts))
    width, height = _width_and_height(options)
    settings = {
        "height": height,
        "width": width,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "prior_num_inference_steps": options.prior_steps,
        "prior_guidance_scale": options.prior_guidance,
        "scheduler": options.scheduler and options.scheduler.upper(),
        "eta": options.eta,
    }
    return [Job(*each, settings) for each in zip(prompts, negatives, seeds, strict=True)]


def _read_prompts(name: str) -> list[str]:
    """The lines of a file that are not blank; "-" is standard input."""
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"The file of prompts {name} is not text in UTF-8 ({error.reason}).") from error
    return [line.strip() for line in lines if line.strip()]


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


def _whole(low: int, high: int) -> Callable[[str], int]:
    """A type of argument: whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            return arguments.whole("it", int(text), low, high)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}") from error

    return parse


def _scale(text: str) -> float:
    try:
        return arguments.scale("it", float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number of 0 or more") from error

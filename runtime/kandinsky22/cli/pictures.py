"""What the commands that make pictures share: their flags, and the way from requests to files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22 import checks
from kandinsky22.bundle.manifest import PRECISIONS
from kandinsky22.cli import flags
from kandinsky22.cli.printable import printable
from kandinsky22.errors import InputError
from kandinsky22.request import kinds
from kandinsky22.request.parameters import PARAMETERS
from kandinsky22.request.request import Request, as_json

if TYPE_CHECKING:
    import PIL.Image

    from kandinsky22.cli.output import Places
    from kandinsky22.pipeline import Pipeline
    from kandinsky22.request.job import Job

AT_ONCE = 64
"""Pictures that one call of a task is for. Their inputs are encoded once, and they are kept until its end."""
OF_A_CALL = ("num_images_per_prompt", "batch_size", "output_type")
"""Parameters that say nothing of a single picture."""

LEADING = {
    "controlnet": ("hint", "depth_model"),
    "inpaint": ("mask_image", "overlay"),
    "img2img": ("image", "strength"),
}
"""The tasks by the parameters that ask for them, in the order in which they decide."""
MACHINE = ("backend", "precision", "threads", "low_memory", "memory_limit", "verify")
"""The arguments of `Pipeline.load` that the machine's flags give."""


@dataclass(frozen=True)
class Call:
    """One call of the pipeline. `request` has a list of seeds, one a picture; `titles` are for the files' names.

    `made` are parameters that were made of those that the request names, and are run in their place.
    """

    request: Request
    titles: tuple[str, ...]
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def as_run(self) -> Request:
        """The request with what was made in its place."""
        return self.request.with_(**self.made)

    @property
    def seeds(self) -> list[int]:
        """One a picture."""
        seeds = self.request.given["seed"]
        assert isinstance(seeds, list)
        return seeds

    def arguments(self, place: int, size: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """What makes the picture at `place` again, which has come out with this width and height, as JSON takes it."""
        data = {
            name: value
            for name, value in as_json(self.request.data()).items()
            if name not in OF_A_CALL and (value is not None or name in ("negative_prompt", "scheduler"))
        }
        for name, parameter in PARAMETERS.items():
            if parameter.beside and data.get(parameter.beside) is None:
                data.pop(name, None)
        for name in ("prompt", "negative_prompt"):
            if isinstance(data.get(name), list):
                data[name] = data[name][place]
        width, height = size
        return {**data, "seed": self.seeds[place], "width": width, "height": height}


def add_arguments(parser: argparse.ArgumentParser, command: str, own: Sequence[str] = ()) -> None:
    """Declare the flags of a command that makes pictures, but for its `own`, which it declares itself."""
    add_request_arguments(parser, command, own)
    _add_output_arguments(parser.add_argument_group("output"))
    machine = parser.add_argument_group("machine")
    add_machine_arguments(machine)
    batch = flags.typed(PARAMETERS["batch_size"].kind.parse or int)
    text = "pictures made at once: more memory, and the last bits of a picture may differ (%(default)s)"
    machine.add_argument("--batch-size", metavar="N", type=batch, default=1, help=text)


def add_request_arguments(parser: argparse.ArgumentParser, command: str, without: Sequence[str] = ()) -> None:
    """Declare the flags of what a command can ask for, but for some parameters."""
    known = [name for name in flags.declared(command) if name not in without]
    inputs = [name for name in known if PARAMETERS[name].part in ("input", "source") and "prompt" not in name]
    rest = [name for name in known if name not in (*inputs, "batch_size")]
    group = parser.add_argument_group("pictures")
    group.add_argument(
        "--size", metavar="WxH", type=flags.typed(kinds.size), help="width and height in one, such as 768x512"
    )
    flags.add(group, command, rest)
    if inputs:
        flags.add(parser.add_argument_group("inputs"), command, inputs)


def _add_output_arguments(group: argparse._ArgumentGroup) -> None:
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
    quality = flags.typed(kinds.whole(1, 100).parse or int)
    add("--quality", metavar="N", type=quality, default=95, help="of JPEG and WebP, 1 to 100 (%(default)s)")
    add(
        "--force",
        action="store_true",
        help="replace pictures of the same name; otherwise a picture in a folder gets a free name, and the name of a "
        "file that exists is refused",
    )
    add("--json", action="store_true", help="print one JSON object at the end instead of paths")
    add("--quiet", action="store_true", help="no progress bar")


def add_machine_arguments(group: argparse._ArgumentGroup) -> None:
    """Declare the flags of what pictures are made with: see `machine`."""
    add = group.add_argument
    add("--backend", metavar="NAME", default="auto", help="see `kandinsky22 doctor` (%(default)s: the fastest here)")
    add("--precision", choices=PRECISIONS, default="auto", help="(%(default)s: the backend's best)")
    threads = flags.typed(kinds.whole(1, 1024).parse or int)
    add("--threads", metavar="N", type=threads, help="of the processor (the backend's choice)")
    add("--low-memory", action="store_true", help="keep one network in memory at a time; slower with several batches")
    add(
        "--memory-limit",
        metavar="GIB",
        type=flags.typed(_memory),
        default="auto",
        help="refuse what will take more by the estimate; none to try everything (%(default)s: what is free)",
    )
    flags.add_verify(group)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What `Pipeline.load` takes beside the bundle."""
    return {name: getattr(options, name) for name in MACHINE}


def asked(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """The parameters that the command line gives, in the words of `Request`; without the seed."""
    given = flags.given(options, [name for name in flags.declared(command) if name not in ("seed", *OF_A_CALL)])
    if hasattr(options, "batch_size"):
        given["batch_size"] = options.batch_size
    if options.size is not None:
        if {"width", "height"} & set(given):
            raise InputError("--size gives both the width and the height; leave --width and --height out.")
        given["width"], given["height"] = options.size
    return given


def leading_task(given: dict[str, Any]) -> str:
    """The task of `generate` that the given parameters ask for. Raises InputError where they are of two."""
    if "mask_image" in given and "hint" in given:
        raise InputError("--mask and --hint are of two different tasks; leave one out.")
    return next((task for task, names in LEADING.items() if any(name in given for name in names)), "text2img")


def seeds(options: argparse.Namespace, pictures: int) -> list[int]:
    """One a picture, counted on from the first."""
    return checks.seeds(getattr(options, "seed", None), pictures)


def calls_of_one_prompt(options: argparse.Namespace, task: str, title: str, given: Mapping[str, Any]) -> list[Call]:
    """Calls whose pictures differ in their seeds alone."""
    every = seeds(options, getattr(options, "num_images_per_prompt", 1))
    return [
        Call(Request.of(task, **given, num_images_per_prompt=len(part), seed=part), (title,) * len(part))
        for part in parts(every)
    ]


def with_depth_maps(calls: list[Call]) -> list[Call]:
    """The depth maps that a network makes are made once for all calls."""
    request = calls[0].request
    if request.given.get("depth_model") is None:
        return calls
    from kandinsky22.images import depth

    hint = depth.estimate(request.given["depth_model"], request.given["hint"])
    return [Call(call.request, call.titles, {"hint": hint, "depth_model": None}) for call in calls]


def parts(values: Sequence[Any]) -> Iterator[list[Any]]:
    """The values of one call after the other."""
    for start in range(0, len(values), AT_ONCE):
        yield list(values[start : start + AT_ONCE])


def make(options: argparse.Namespace, calls: Sequence[Call]) -> int:
    """Make and write the pictures of `calls`; the exit code."""
    from kandinsky22.cli.output import Places
    from kandinsky22.pipeline import Pipeline

    names = [(title, seed) for call in calls for title, seed in zip(call.titles, call.seeds, strict=True)]
    places = Places(options.output, options.format, names, quality=options.quality, force=options.force)
    told: dict[str, Any] = {"pictures": [], "timings": {}}
    try:
        with Pipeline.load(options.bundle, **machine(options)) as pipe:
            first = pipe.resolve(calls[0].as_run)  # what it refuses should leave no folder behind
            with places.ready():
                _make(pipe, calls, first, places, options, told)
    except KeyboardInterrupt as stopped:
        written = len(told["pictures"])
        stopped.add_note(f"{'1 picture was' if written == 1 else f'{written} pictures were'} written")
        raise
    finally:
        if options.json:
            print(json.dumps(told, indent=2))
    return 0


def _make(
    pipe: Pipeline,
    calls: Sequence[Call],
    first: Job,
    places: Places,
    options: argparse.Namespace,
    told: dict[str, Any],
) -> None:
    """Make and write the pictures batch by batch; `first` is the first call's job. What --json tells goes to `told`."""
    from tqdm import tqdm

    from kandinsky22.callbacks import Callbacks

    made_by = origin(pipe, first)
    places.check({"arguments": call.arguments(place), **made_by} for call in calls for place in range(len(call.titles)))
    batches = sum(-(-len(call.titles) // options.batch_size) for call in calls)
    # `disable=None`: no bar where stderr is no terminal.
    with tqdm(total=batches * first.steps, unit="step", disable=True if options.quiet else None) as bar:
        for call in calls:
            made = len(told["pictures"])

            def write(start: int, pictures: Any, call: Call = call, made: int = made) -> None:
                for place, picture in enumerate(pictures, start):
                    parameters = {"arguments": call.arguments(place, picture.size), **made_by}
                    path = places.save(made + place, picture, parameters)
                    told["pictures"].append(_told(path, picture, call.titles[place], call.seeds[place]))
                    if not options.json:
                        tqdm.write(printable(str(path)), file=sys.stdout)
                        sys.stdout.flush()

            def advance(*_: object) -> None:
                bar.update()

            job = first if call is calls[0] else pipe.resolve(call.as_run)
            for stage, seconds in pipe.pictures(job, Callbacks(pipe, advance, advance, write)).timings.items():
                told["timings"][stage] = told["timings"].get(stage, 0.0) + seconds


def _told(path: Path, picture: PIL.Image.Image, title: str, seed: int) -> dict[str, Any]:
    """What --json tells about a picture."""
    return {"path": str(path), "prompt": title, "seed": seed, "width": picture.width, "height": picture.height}


def origin(pipe: Pipeline, job: Job) -> dict[str, Any]:
    """What a picture depends on beside its arguments: the task, the bundle, and what ran it."""
    manifest, backend = pipe.bundle.manifest, pipe.backend
    assert job.sampling is not None
    decoder = manifest.components[job.sampling.segments[0].component]
    return {
        "task": job.request.task.name,
        "bundle": {
            "name": manifest.name,
            "precision": manifest.precision,
            "source": manifest.source,
            "scheduler": manifest.schedulers.get(decoder.scheduler or "", {}).get("_class_name"),
            "manifest_sha256": pipe.bundle.manifest_sha256,
        },
        "backend": {"name": backend.name, "version": backend.version, "precision": pipe.precision},
    }


def _memory(text: str) -> float | str | None:
    if text in ("auto", "none"):
        return None if text == "none" else text
    try:
        return checks.positive("it", float(text))
    except ValueError:
        raise ValueError(f"{text!r} is neither auto, none nor a number of GiB above 0") from None

"""`kandinsky22 compare`: the same prompts and seeds through two bundles, or through two settings of one."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22 import checks, files
from kandinsky22.cli import comparison, flags, pictures
from kandinsky22.cli.comparison import NAMES
from kandinsky22.cli.pictures import Call
from kandinsky22.cli.printable import printable
from kandinsky22.cli.prompts import read_prompts
from kandinsky22.errors import InputError, shown
from kandinsky22.request.request import Request

if TYPE_CHECKING:
    import PIL.Image

    from kandinsky22.measure.compare import Case, Comparison, Side, Which

REPORT = "comparison.json"
MOST_PROMPTS = 1000
"""Each has two pictures on the disk and a row on a sheet."""

_OURS = re.compile(rf"{re.escape(REPORT)}|sheet-\d+\.png|\d+-(?:{'|'.join(NAMES)})\.png", re.ASCII)
"""Names of the files in a comparison's folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "The pictures of A are the reference. PSNR is in dB, of 8-bit RGB; SSIM that of Wang et al., 2004; CLIP the "
        "cosine of the embeddings by A's image encoder; seconds are a picture's, without loading. A setting that "
        'begins with a dash and has no space needs the "=": --second=--low-memory.'
    )
    add = parser.add_argument
    add("bundle", metavar="A", help="folder that kandinsky22-export wrote")
    add("other", metavar="B", nargs="?", help="the bundle that is compared with it (A, with other settings)")
    add("--prompts", "--prompts-file", dest="prompts_file", metavar="FILE", help="one prompt a line; - reads stdin")
    add("--prompt", metavar="TEXT", action="append", default=[], help="a prompt; may be given several times")
    for name, side in zip(NAMES, "AB", strict=True):
        text = f'settings of {side} alone: the flags below in one word, such as "--steps 20 --scheduler dpm++"'
        add(f"--{name}", metavar="FLAGS", default="", help=text)
    pictures.add_request_arguments(parser, "generate", ["num_images_per_prompt"])
    group = parser.add_argument_group("output")
    text = "a new folder for the pictures, contact sheets and comparison.json, whole or absent (%(default)s)"
    group.add_argument("-o", "--output", metavar="FOLDER", default="comparison", help=text)
    group.add_argument("--force", action="store_true", help="replace the folder of an earlier comparison")
    group.add_argument("--json", action="store_true", help="print comparison.json in place of a table")
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    pictures.add_machine_arguments(parser.add_argument_group("machine"))


def run(options: argparse.Namespace) -> int:
    """Make the pictures, measure and print how alike they are; the exit code."""
    cases = _cases(options)
    both = [_settings(options, name) for name in NAMES]
    bundles = [options.bundle, options.other or options.bundle]
    if options.other is None and vars(both[0]) == vars(both[1]):
        raise InputError(
            "There is nothing to compare: name a second bundle, or give other settings with --first or --second."
        )
    with _folder(options) as folder, contextlib.ExitStack() as opened:
        asked = [_asked(each) for each in both]
        shelf = _Shelf(folder, _subjects(bundles, both, asked, opened), cases)
        told = _compared(options, shelf, folder)
    if options.json:
        print(json.dumps(told, indent=2, allow_nan=False))
    else:
        print(comparison.table(told))
        for name in (*told["sheets"], REPORT):
            print(printable(str(Path(options.output) / name)))
    return 0


def _cases(options: argparse.Namespace) -> list[Case]:
    """What both make pictures of: one seed a prompt. Raises InputError where there is none, or too many."""
    from kandinsky22.measure.compare import Case

    prompts = [*options.prompt, *(read_prompts(options.prompts_file) if options.prompts_file else ())]
    if not prompts:
        raise InputError("There is no prompt; give a file of them with --prompts, or one with --prompt.")
    if len(prompts) > MOST_PROMPTS:
        raise InputError(f"These are {len(prompts)} prompts; one run compares {MOST_PROMPTS} at most: give fewer.")
    seeds = pictures.seeds(options, len(prompts))
    return [Case(prompt, seed) for prompt, seed in zip(checks.texts("prompt", prompts), seeds, strict=True)]


def _settings(options: argparse.Namespace, name: str) -> argparse.Namespace:
    """The options of one side: those of both, and in their place what its own flags say."""
    parser = flags.RaisingParser(prog="kandinsky22 compare", add_help=False)
    pictures.add_request_arguments(parser, "generate", ["num_images_per_prompt", "seed"])
    pictures.add_machine_arguments(parser.add_argument_group("machine"))
    written = getattr(options, name) or ""  # argparse makes an empty list of "--"
    try:
        found = parser.parse_args(shlex.split(written), copy.copy(options))
    except ValueError as error:  # also argparse's, as InputError
        reason = printable(str(error).rstrip("."))
        raise InputError(f"--{name} is {shown(written)}, which is no flags of a picture: {reason}.") from error
    for each in NAMES:
        delattr(found, each)
    return found


def _asked(options: argparse.Namespace) -> Call:
    """What one side is asked for, without prompt and seed."""
    given = pictures.asked(options, "generate")
    (call,) = pictures.with_depth_maps([Call(Request.of(pictures.leading_task(given), **given), ())])
    return call


def _subjects(
    bundles: Sequence[str], both: Sequence[argparse.Namespace], asked: Sequence[Call], opened: contextlib.ExitStack
) -> list[_Subject]:
    """Both sides, with one pipeline where they need no two; it is closed with `opened`."""
    from kandinsky22.measure.compare import Side
    from kandinsky22.pipeline import Pipeline

    machines = [pictures.machine(options) for options in both]
    pipes = [opened.enter_context(Pipeline.load(bundles[0], **machines[0]))]
    alike = bundles[0] == bundles[1] and machines[0] == machines[1]
    pipes.append(pipes[0] if alike else opened.enter_context(Pipeline.load(bundles[1], **machines[1])))
    return [
        _Subject(Side(pipe, call.as_run), call, machine)
        for pipe, call, machine in zip(pipes, asked, machines, strict=True)
    ]


@dataclass(frozen=True)
class _Subject:
    """A side, the call whose parameters its pictures tell, and what its pipeline was loaded with."""

    side: Side
    call: Call
    machine: Mapping[str, Any]

    def told(self, case: Case, size: tuple[int, int]) -> dict[str, Any]:
        """How a case's picture of this size was made, as it is stored in its file."""
        request = self.call.request.with_(prompt=[case.prompt], seed=[case.seed])
        call = dataclasses.replace(self.call, request=request)
        return {"arguments": call.arguments(0, size), **pictures.origin(self.side.pipe, self.side.job(case))}

    def about(self, case: Case) -> dict[str, Any]:
        """What all of its pictures have in common, as one of them tells it."""
        told = self.told(case, self.side.size(case))
        told["arguments"] = {name: value for name, value in told["arguments"].items() if name not in ("prompt", "seed")}
        machine = {name: self.machine[name] for name in ("threads", "low_memory")}
        return {"path": str(self.side.pipe.bundle.path), "machine": machine, **told}

    def in_words(self) -> str:
        """The same for the head of a sheet: the bundle, what ran it, and the flags that were given."""
        pipe, asked = self.side.pipe, self.call.request.given
        words = [word for name in asked if name in flags.FLAGS for word in flags.words(name, asked[name])]
        words += [f"--threads={self.machine['threads']}"] * (self.machine["threads"] is not None)
        words += ["--low-memory"] * self.machine["low_memory"]
        return " ".join([str(pipe.bundle.path), pipe.backend.name, pipe.precision, *words])


class _Shelf:
    """Pictures as PNG files in a folder, which tell how they were made."""

    def __init__(self, folder: Path, subjects: Sequence[_Subject], cases: Sequence[Case]) -> None:
        self.subjects, self.cases = subjects, cases
        self._folder, self._digits = folder, len(str(len(cases)))

    def name(self, side: Which, place: int) -> str:
        """The name of a picture's file."""
        return f"{place + 1:0{self._digits}}-{NAMES[side]}.png"

    def keep(self, side: Which, place: int, picture: PIL.Image.Image) -> None:
        """Write a picture."""
        from kandinsky22.images import writing

        told = self.subjects[side].told(self.cases[place], picture.size)
        writing.save(picture, self._folder / self.name(side, place), told)

    def picture(self, side: Which, place: int) -> PIL.Image.Image:
        """Read a picture."""
        import PIL.Image

        with PIL.Image.open(self._folder / self.name(side, place)) as picture:
            picture.load()
            return picture

    def check(self) -> None:
        """Raise InputError where a picture cannot tell how it was made."""
        import PIL.Image

        from kandinsky22.images import writing

        speck = PIL.Image.new("RGB", (1, 1))
        longest = max(self.cases, key=lambda case: len(json.dumps(case.prompt)))
        for subject in self.subjects:
            writing.encode(speck, "png", subject.told(longest, speck.size))


@contextlib.contextmanager
def _folder(options: argparse.Namespace) -> Iterator[Path]:
    """The folder of a comparison that is being made. Raises InputError where it cannot be."""
    place = Path(options.output)
    try:
        with files.new_folder(place, _is_ours if options.force else lambda folder: False) as folder:
            yield folder
    except OSError as error:
        if error.filename != str(place):  # about a file within, or something else
            raise
        if not isinstance(error, FileExistsError):
            reason = f"cannot be written ({error.strerror}); choose another --output"
        elif options.force:
            reason = "is not the folder of a comparison, and nothing else is replaced; choose another --output"
        else:
            reason = "exists; choose another --output, or replace it with --force"
        raise InputError(f"{place} {reason}.") from error


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a comparison, and nothing else."""
    found = list(folder.iterdir())
    ours = all(_OURS.fullmatch(each.name) and files.kind_of(each) == "a file" for each in found)
    return ours and folder / REPORT in found


def _compared(options: argparse.Namespace, shelf: _Shelf, folder: Path) -> dict[str, Any]:
    """Compare, and write everything into the folder; what is in its report."""
    from tqdm import tqdm

    from kandinsky22.measure import compare

    first, second = (subject.side for subject in shelf.subjects)
    compare.check(first, second, shelf.cases)
    shelf.check()
    total = compare.steps(first, second, shelf.cases)
    with tqdm(total=total, unit="step", disable=True if options.quiet else None) as bar:
        found = compare.compare(first, second, shelf.cases, shelf, bar.update)
    if found.without_cosine:
        reason = flags.message_in_flags(found.without_cosine)
        warnings.warn(f"There is no cosine of CLIP's embeddings: {reason}", stacklevel=2)
    sheets = list(_write_sheets(shelf, found, folder))
    about = [subject.about(shelf.cases[0]) for subject in shelf.subjects]
    names = [[shelf.name(side, place) for side in compare.SIDES] for place in range(len(shelf.cases))]
    told = comparison.as_json(about, found, names, sheets)
    files.write_file(folder / REPORT, (json.dumps(told, indent=2, allow_nan=False) + "\n").encode())
    return told


def _write_sheets(shelf: _Shelf, found: Comparison, folder: Path) -> Iterator[str]:
    """Write the contact sheets; the names of their files."""
    from kandinsky22.images import writing
    from kandinsky22.measure import sheet

    heading = [f"{name}: {subject.in_words()}" for name, subject in zip(NAMES, shelf.subjects, strict=True)]
    heading.append(f"from left to right: first, second, and {sheet.TIMES} times their difference")
    rows = (
        sheet.Row(shelf.picture(0, place), shelf.picture(1, place), comparison.caption(place, pair))
        for place, pair in enumerate(found.pairs)
    )
    digits = len(str(-(-len(found.pairs) // sheet.ROWS)))
    for number, picture in enumerate(sheet.sheets(rows, [printable(line) for line in heading]), 1):
        name = f"sheet-{number:0{digits}}.png"
        writing.save(picture, folder / name, {})
        yield name

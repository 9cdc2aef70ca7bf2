"""Where pictures go: names that tell them apart, in folders that are known to take files before the work begins."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from kandinsky22.cli import signals
from kandinsky22.errors import InputError
from kandinsky22.files import kind_of, make_folder
from kandinsky22.images import writing

LONGEST_SLUG = 48
"""Characters: with four bytes each and a seed, a name stays below the 255 bytes that file systems take."""


class Places:
    """One place a picture.

    `output` is a folder, where names are made of prompt and seed and a taken name is stepped over; or a file that the
    user has named, which is never replaced unless `force`.
    """

    def __init__(
        self, output: str, form: str | None, pictures: Sequence[tuple[str, int]], *, quality: int, force: bool
    ) -> None:
        """Plan a path for each of `pictures`, given as prompt and seed; `form` is one of images.FORMATS or None.

        Raises InputError where the plan cannot work: two pictures of one name, a name that exists, another suffix.
        """
        self._quality, self._force = quality, force
        self._named = _names_a_file(output)
        if self._named:
            self._format = writing.format_of(output)
            if form not in (None, self._format):
                raise InputError(f"The suffix of {output} and --format {form} contradict each other; leave one out.")
            self._paths = _fill(output, pictures)
            self._refuse_clashes(output)
        else:
            self._format = form or "png"
            suffix = writing.FORMATS[self._format]
            self._paths = [Path(output) / f"{slug(prompt)}-{seed}{suffix}" for prompt, seed in pictures]
        if force:
            self._refuse_what_is_no_file()

    def _refuse_clashes(self, output: str) -> None:
        if len(set(self._paths)) < len(self._paths):
            raise InputError(
                f"{output} names one file for several of the {len(self._paths)} pictures; "
                f"name a folder, or write {{seed}} or {{index}} into the file's name."
            )
        taken = [path for path in self._paths if kind_of(path)]
        if taken and not self._force:
            raise InputError(f"{taken[0]} exists; choose another name, or replace it with --force.")

    def _refuse_what_is_no_file(self) -> None:
        """As `files` would, when the picture is made."""
        for path in self._paths:
            if path.exists() and not path.is_file():
                raise InputError(f"{path} is no file, and only a file is replaced; choose another name.")

    @contextlib.contextmanager
    @signals.whole
    def ready(self) -> Iterator[None]:
        """The folders, made where they are missing and tried out; a new one goes again if nothing came into it.

        Raises InputError where no file can be written.
        """
        made: list[Path] = []
        try:
            for folder in dict.fromkeys(path.parent for path in self._paths):
                try:
                    make_folder(folder, made)
                    _try_out(folder)
                except OSError as error:
                    raise InputError(
                        f"No picture can be written to {folder} ({error.strerror}); choose another --output."
                    ) from error
            yield
        finally:
            for folder in reversed(made):
                with contextlib.suppress(OSError):  # it is not empty, as it should be
                    folder.rmdir()

    def check(self, parameters: Iterable[Mapping[str, Any]]) -> None:
        """Raise InputError where a picture's parameters are more than its format can hold."""
        speck = PIL.Image.new("RGB", (1, 1))
        for each in parameters:
            writing.encode(speck, self._format, each, quality=self._quality)

    def save(self, index: int, picture: PIL.Image.Image, parameters: Mapping[str, Any]) -> Path:
        """Write picture `index`; its path, which in a folder is the first free one from the planned name on.

        Raises OSError where it cannot be written.
        """
        path = self._paths[index]
        if self._named or self._force:
            writing.save(picture, path, parameters, quality=self._quality, overwrite=self._force)
            return path
        for candidate in _numbered(path):
            # Another process may take the name at any time, so it is `save` that decides.
            with contextlib.suppress(FileExistsError):
                if not candidate.exists():
                    writing.save(picture, candidate, parameters, quality=self._quality)
                    return candidate
        raise AssertionError  # there is always a next number


def slug(prompt: str) -> str:
    """The letters and digits of a prompt as a part of a file's name."""
    return re.sub(r"[\W_]+", "-", prompt.lower())[:LONGEST_SLUG].strip("-") or "picture"


def _names_a_file(output: str) -> bool:
    """Whether the user means a file. Raises InputError where it is neither a picture's name nor a folder's."""
    path = Path(output)
    if path.is_dir() or output.endswith(("/", os.sep)) or not path.suffix:
        return False
    if path.suffix.lower() not in writing.SUFFIXES:
        raise InputError(
            f"{output} is no folder, and {path.suffix} is none of {', '.join(writing.SUFFIXES)}; "
            f"a new folder with a dot in its name needs a / at the end."
        )
    return True


def _fill(template: str, pictures: Sequence[tuple[str, int]]) -> list[Path]:
    """The paths that `template` gives; indexes are padded so that names sort in order."""
    digits = len(str(len(pictures)))
    paths = []
    for index, (prompt, seed) in enumerate(pictures, 1):
        values = {"prompt": slug(prompt), "seed": str(seed), "index": f"{index:0{digits}}"}
        unknown = set(re.findall(r"{(\w*)}", template)) - set(values)
        if unknown:
            raise InputError(f"{template} has {{{unknown.pop()}}}; expected {{prompt}}, {{seed}} or {{index}}.")
        paths.append(Path(re.sub(r"{(\w+)}", lambda found: values[found[1]], template)))  # noqa: B023 - used at once
    return paths


def _numbered(path: Path) -> Iterator[Path]:
    """`path`, and then names that count on from it."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def _try_out(folder: Path) -> None:
    """Raise OSError where a file in `folder` cannot be made, or not a byte of it be written."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0")

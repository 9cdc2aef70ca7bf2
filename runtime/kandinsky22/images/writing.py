"""Pictures: arrays to PIL, and files that remember how they were made."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngInfo

from kandinsky22.arrays import Floats
from kandinsky22.errors import InputError
from kandinsky22.version import VERSION

FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""Formats of files, and the suffix that each gets."""
SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
QUALITY = 95
"""Of JPEG and WebP, where nothing else is asked for."""

_MARK = "kandinsky22"
"""PNG's keyword for the parameters, and the key in them that no other program writes."""
_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_SOFTWARE = 0x0131
_ASCII = b"ASCII\0\0\0"
"""What EXIF puts before a comment in ASCII. JSON escapes the rest of Unicode, so that every reader agrees on it."""
_LARGEST_EXIF = 65_000
"""JPEG has two bytes for the length of a segment; this leaves room for what stands around the comment."""


def to_pil(pixels: Floats) -> list[PIL.Image.Image]:
    """PIL pictures from float32 (n, H, W, 3) in 0..1, rounded to 8 bits as diffusers rounds them."""
    return [PIL.Image.fromarray(picture) for picture in (pixels * 255).round().astype(np.uint8)]


def save(
    picture: PIL.Image.Image,
    path: str | Path,
    parameters: Mapping[str, Any],
    *,
    quality: int = QUALITY,
    overwrite: bool = False,
) -> None:
    """Write a picture and how it was made to `path`, as its suffix says; the file is whole or absent.

    Args:
        picture: What to write.
        path: Ends in .png, .jpg, .jpeg or .webp.
        parameters: Anything that JSON can hold; `read_parameters` gives it back, and the version that wrote it.
        quality: 1..100, of JPEG and WebP.
        overwrite: Replace a file that is there.

    Raises:
        InputError: The suffix is another, or the parameters are longer than the format can hold.
        FileExistsError: The file is there, and was not to be replaced.
        OSError: The file cannot be written: no folder, no permission, no space.
    """
    path = Path(path)
    # In memory first: Pillow hides why it could not write to a disk.
    data = encode(picture, format_of(path), parameters, quality=quality)
    try:
        with _temporary_beside(path) as (temporary, file):
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if overwrite:
                temporary.replace(path)
            else:
                _move_to_new(temporary, path)
    except OSError as error:
        # The user knows the picture's name, not the temporary one.
        raise OSError(error.errno, error.strerror, str(path)) from error


def encode(picture: PIL.Image.Image, form: str, parameters: Mapping[str, Any], *, quality: int = QUALITY) -> bytes:
    """The bytes of a picture's file with how it was made, in one of FORMATS. Arguments and InputError as in `save`."""
    text = json.dumps({_MARK: VERSION, **parameters})
    stream = io.BytesIO()
    if form == "png":
        info = PngInfo()
        info.add_text(_MARK, text)
        picture.save(stream, form, pnginfo=info)
    else:
        options = {"subsampling": 0} if form == "jpeg" else {}  # colours as sharp as brightness
        picture.save(stream, form, quality=quality, exif=_exif(text), **options)
    return stream.getvalue()


def format_of(path: str | Path) -> str:
    """The format that the suffix of `path` asks for. Raises InputError where it asks for none of FORMATS."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path} does not say which format it is of; expected one of {', '.join(SUFFIXES)} at the end."
        )
    return SUFFIXES[suffix]


def read_parameters(path: str | Path) -> dict[str, Any]:
    """What `save` was given beside the picture in `path`, with the version that wrote it as "kandinsky22".

    Raises InputError where `path` is no picture, or one that does not say how it was made; OSError where it cannot be
    opened.
    """
    with Path(path).open("rb") as file:
        try:
            text = _stored_text(file)
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise InputError(f"{path} is not a picture that can be read; expected PNG, JPEG or WebP.") from error
    with contextlib.suppress(ValueError, RecursionError):  # a comment of somebody else's
        parameters = json.loads(text or "null")
        if isinstance(parameters, dict) and _MARK in parameters:
            return parameters
    raise InputError(f"{path} does not say how it was made: it was not written by kandinsky22, or was edited since.")


def _exif(text: str) -> PIL.Image.Exif:
    """EXIF with `text`, which is ASCII, as the user's comment."""
    if len(text) > _LARGEST_EXIF:
        raise InputError(f"The prompt is too long to be stored in a JPEG or WebP file ({len(text)} bytes); choose PNG.")
    exif = PIL.Image.Exif()
    exif[_SOFTWARE] = f"kandinsky22 {VERSION}"
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _ASCII + text.encode("ascii")
    return exif


def _stored_text(file: IO[bytes]) -> str | bytes | None:
    """The text that `encode` put into a picture, or what stands in its place. Pillow raises all sorts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about damaged EXIF: what counts is whether ours is there
        with PIL.Image.open(file) as picture:
            if _MARK in picture.info:
                return str(picture.info[_MARK])
            comment = picture.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    return comment.removeprefix(_ASCII) if isinstance(comment, bytes) else None


@contextlib.contextmanager
def _temporary_beside(path: Path) -> Iterator[tuple[Path, io.BufferedWriter]]:
    """A new file in the folder of `path`, under a name of its own; gone afterwards, unless it was moved away."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            yield temporary, file
    finally:
        temporary.unlink(missing_ok=True)


def _move_to_new(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path`, which nobody has: a link fails where another process was faster."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)

"""Pictures: arrays to PIL, and files that remember how they were made."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngInfo

from kandinsky22 import files, schema
from kandinsky22.arrays import Floats
from kandinsky22.errors import InputError
from kandinsky22.images import reading
from kandinsky22.version import VERSION

FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""Formats of files, and the suffix of each."""
SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""Suffixes of files, in small letters, and the format that each asks for."""
_READ = [form.upper() for form in FORMATS]
"""The formats by Pillow's names."""
QUALITY = 95
"""Quality of JPEG and WebP files when none is given."""

MOST_TEXT = 1 << 20
"""Characters that a picture may tell of how it was made."""
_MARK = "kandinsky22"
"""PNG's keyword for the parameters, and the key in them that no other program writes."""
_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_SOFTWARE = 0x0131
_ASCII = b"ASCII\0\0\0"
"""EXIF's mark of a comment in ASCII. JSON escapes the rest of Unicode, so that every reader agrees on it."""
_LARGEST_EXIF = 65_000
"""Bytes of a comment. A segment of a JPEG has at most 65,535; this leaves room for what stands around it."""


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
        picture: The picture.
        path: A path that ends in .png, .jpg, .jpeg or .webp.
        parameters: How it was made: anything that JSON can hold. `read_parameters` gives it back, with the version.
        quality: Quality of JPEG and WebP, 1..100; PNG has none.
        overwrite: Whether a file of that name is replaced.

    Raises:
        InputError: The suffix is another, or the parameters are longer than the format can hold.
        FileExistsError: The file exists and `overwrite` is false.
        OSError: The file cannot be written: no folder, no permission, no space.
    """
    path = Path(path)
    # In memory first: Pillow hides why it could not write to a disk.
    data = encode(picture, format_of(path), parameters, quality=quality)
    files.write_file(path, data, replace=overwrite)


def encode(picture: PIL.Image.Image, form: str, parameters: Mapping[str, Any], *, quality: int = QUALITY) -> bytes:
    """The bytes of a file of a format in FORMATS: picture and parameters. Arguments and errors are those of `save`."""
    text = json.dumps({_MARK: VERSION, **parameters})
    stream = io.BytesIO()
    if form == "png":
        if len(text) > MOST_TEXT:
            raise InputError(f"The prompt is too long to be stored in a picture ({len(text)} bytes); shorten it.")
        info = PngInfo()
        info.add_text(_MARK, text)
        picture.save(stream, form, pnginfo=info)
    else:
        options = {"subsampling": 0} if form == "jpeg" else {}  # colours as sharp as brightness
        picture.save(stream, form, quality=quality, exif=_exif(text), **options)
    return stream.getvalue()


def format_of(path: str | Path) -> str:
    """The format that the suffix of `path` asks for. Raises InputError when that is none of FORMATS."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path} does not say which format it is of; expected one of {', '.join(SUFFIXES)} at the end."
        )
    return SUFFIXES[suffix]


def read_parameters(path: str | Path) -> dict[str, Any]:
    """The parameters that `save` wrote beside the picture, and the version that wrote it as "kandinsky22".

    Raises InputError when `path` is no picture, one that does not say how it was made, or one whose text is longer than
    `MOST_TEXT`; OSError when it cannot be opened.
    """
    expected = "expected a picture as PNG, JPEG or WebP"
    with files.open_regular(path, reading.MOST_BYTES) as file, reading.decoding(str(path), expected):
        text = _stored_text(file)
    if text is not None and len(text) > MOST_TEXT:
        raise InputError(f"{path} has more than {MOST_TEXT >> 20} MiB of text about how it was made; it is not read.")
    with contextlib.suppress(ValueError, RecursionError):  # a comment of another program
        parameters = json.loads(text or "null")
        if isinstance(parameters, dict) and _MARK in parameters and not schema.is_deeper(parameters):
            return parameters
    raise InputError(f"{path} does not say how it was made: it was not written by kandinsky22, or was edited since.")


def _exif(text: str) -> PIL.Image.Exif:
    """EXIF data with `text`, which is ASCII, as the user's comment. Raises InputError when it is too long."""
    if len(text) > _LARGEST_EXIF:
        raise InputError(f"The prompt is too long to be stored in a JPEG or WebP file ({len(text)} bytes); choose PNG.")
    exif = PIL.Image.Exif()
    exif[_SOFTWARE] = f"kandinsky22 {VERSION}"
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _ASCII + text.encode("ascii")
    return exif


def _stored_text(file: IO[bytes]) -> str | bytes | None:
    """The text that `encode` put into a file, another program's comment, or None. Pillow raises many errors.

    Text that PNG holds compressed is expanded by Pillow up to 1 MiB a piece and 64 MiB in all, and refused beyond that.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about damaged EXIF
        with PIL.Image.open(file, formats=_READ) as picture:
            if _MARK in picture.info:
                return str(picture.info[_MARK])
            comment = picture.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    return comment.removeprefix(_ASCII) if isinstance(comment, bytes) else None

"""Pictures that strangers send: what is taken, and checked once at the door, before a job is made of it.

PNG, JPEG and WebP are taken, told apart by their content. Nothing is decoded before the bytes, the structure
(`picture_structure`) and the pixels are within bounds. Then the runtime's own reader decodes it, so that a damaged file
is refused at once. The bytes stay as they are, EXIF included: the runtime reads them again.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import urllib.parse
import warnings
from dataclasses import dataclass

import PIL.Image

from kandinsky22.errors import InputError
from kandinsky22.images import reading
from kandinsky22_serve import picture_structure as structure

FORMATS = ("PNG", "JPEG", "WEBP")

_EXPECTED = "expected one picture as PNG, JPEG or WebP"
_TOKEN = r"[A-Za-z0-9!#$&^_.+-]+"
_DATA_URI = re.compile(rf"data:(?:{_TOKEN}/{_TOKEN})?(?:;{_TOKEN}=[A-Za-z0-9!#$&^_.+*'%-]+)*(;base64)?", re.IGNORECASE)
_LONGEST_KIND = 500
"""Most characters of a data URI before its data."""

_NOT_ESCAPED = re.compile(r"[^!$-~]|%(?![0-9A-Fa-f]{2})")
"""What a data URI writes as %XX: spaces, lines, quotes, what is beyond ASCII, "#", which begins a fragment, and "%"."""


@dataclass(frozen=True)
class CheckedPicture:
    """A picture that can be read: its format, one of `FORMATS`, and its size the right way up, in pixels."""

    format: str
    width: int
    height: int


def check_picture(body: bytes, *, most_bytes: int, most_pixels: int, name: str = "image") -> CheckedPicture:
    """Check that `body` is one picture, by decoding it. It takes a moment: not in the loop that answers requests.

    Args:
        body: The file.
        most_bytes: Most bytes of it.
        most_pixels: Most pixels, width times height, known before anything is decoded. At most `reading.LARGEST`.
        name: What the user calls it, for messages.

    Raises:
        InputError: It is too large, of another format, animated, damaged, or made so that reading it takes far more
            time or memory than its size lets expect.
    """
    if len(body) > most_bytes:
        raise InputError(f"{name} has {len(body)} bytes; expected {most_bytes} at most: scale it down.")
    most_pixels = min(most_pixels, reading.LARGEST)
    structure.check(name, body)
    _refuse_large(name, structure.webp_size(body), most_pixels)
    with reading.decoding(name, _EXPECTED), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about large pictures and damaged metadata
        try:
            file = PIL.Image.open(io.BytesIO(body), formats=FORMATS)
        except PIL.Image.DecompressionBombError:
            raise _too_large(name, most_pixels) from None
        with file:
            _refuse_large(name, file.size, most_pixels)
            if getattr(file, "is_animated", False) and file.format != "MPO":
                raise InputError(f"{name} is animated; {_EXPECTED} that is not.")
            file.load()
            structure.check_metadata(name, file.info)
            upright = reading.picture(name, file)
            return CheckedPicture("JPEG" if file.format == "MPO" else str(file.format), *upright.size)


def data_uri(text: str, most_bytes: int, *, name: str = "image") -> bytes:
    """The bytes of a data URI (RFC 2397), whatever media type it names, in base64 or percent-encoded.

    Nothing is passed over: no space, no line, no missing padding, no other alphabet. Base64 may be percent-encoded.

    Raises:
        InputError: It is none, or has more than `most_bytes`. Text that is far too long is not decoded.
    """
    if len(text) > 4 * most_bytes + _LONGEST_KIND:  # four characters a byte is base64 with each as %XX
        raise _too_many_bytes(name, most_bytes)
    kind, comma, rest = text.partition(",")
    found = _DATA_URI.fullmatch(kind) if len(kind) <= _LONGEST_KIND else None
    if not comma or found is None or _NOT_ESCAPED.search(rest):
        raise InputError(f"{name} is no data URI; expected data:image/png;base64,… without spaces and lines.")
    data = urllib.parse.unquote_to_bytes(rest)
    if found[1]:
        try:
            data = base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise InputError(f"{name} is a data URI whose base64 is damaged; expected standard base64.") from error
    if len(data) > most_bytes:
        raise _too_many_bytes(name, most_bytes)
    return data


def _refuse_large(name: str, size: tuple[int, int] | None, most_pixels: int) -> None:
    if size is not None and size[0] * size[1] > most_pixels:
        raise _too_large(name, most_pixels)


def _too_large(name: str, most_pixels: int) -> InputError:
    return InputError(f"{name} has too many pixels; expected {most_pixels} at most: scale it down.")


def _too_many_bytes(name: str, most_bytes: int) -> InputError:
    return InputError(f"{name} has more than {most_bytes} bytes; expected {most_bytes} at most: scale it down.")

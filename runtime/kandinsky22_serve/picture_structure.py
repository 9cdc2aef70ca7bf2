"""Pictures made to harm: files of few bytes and pixels that take minutes or gigabytes to read.

Pillow bounds pixels and the size of compressed metadata. It does not bound how often such things come. Each limit here
is far beyond what cameras and programs write, and near the size of the file in what it lets through:

- JPEG of thousands of progressive scans: each is some 40 bytes, and goes through all pixels again.
- JPEG with megabytes of fill bytes or millions of empty segments, PNG of empty chunks: each costs a step of Python.
- PNG with thousands of colour profiles, each inflated.
- EXIF whose values are all the same bytes: each is copied.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from PIL.JpegImagePlugin import MARKER

from kandinsky22.errors import InputError

MOST_SCANS = 30
"""Progressive scans of a JPEG; programs write about ten."""

MOST_SEGMENTS = 1000
"""Segments of a JPEG before its pixels, and chunks of a PNG beside one every `_CHUNK_BYTES`."""

MOST_FILL = 1 << 16
"""Bytes before a JPEG's pixels that belong to no segment."""

MOST_EXIF = 1 << 18
"""Bytes of EXIF."""

_CHUNK_BYTES = 1000
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_EXIF = b"Exif\0\0"
_MPF = b"MPF\0"
_SUB_DIRECTORIES = (0x8769, 0x8825, 0xA005)
"""Tags that say where EXIF's further directories are: Exif, GPS and interoperability."""

_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes of a value, by EXIF's types."""


def check(name: str, body: bytes) -> None:
    """Check the structure of a file before it is opened. Raises InputError, which begins with `name`."""
    if body.startswith(_PNG):
        _check_png(name, body)
    elif body.startswith(_JPEG):
        _check_jpeg(name, body)


def check_metadata(name: str, info: Mapping[Any, Any]) -> None:
    """Check the EXIF that Pillow found, before it is read. Raises InputError, which begins with `name`."""
    exif = info.get("exif", b"")
    if not exif and "Raw profile type exif" in info:  # as ImageMagick writes it: hexadecimal, in a PNG's text
        try:
            exif = bytes.fromhex("".join(str(info["Raw profile type exif"]).split("\n")[3:]))
        except ValueError:
            return  # no reader takes it
    _check_exif(name, exif if isinstance(exif, bytes) else b"")


def webp_size(body: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP by its header; None for anything else. Opening one takes memory for all pixels."""
    if len(body) < 30 or body[:4] != b"RIFF" or body[8:12] != b"WEBP":
        return None
    kind = body[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[24:27], "little"), 1 + int.from_bytes(body[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _check_png(name: str, body: bytes) -> None:
    most = MOST_SEGMENTS + len(body) // _CHUNK_BYTES
    at, chunks, profiles = len(_PNG), 0, 0
    while at + 8 <= len(body):
        length, kind = struct.unpack_from(">I4s", body, at)
        chunks += 1
        profiles += kind == b"iCCP"
        if chunks > most or profiles > 1:
            raise _harmful(name, "too many parts")
        at += 12 + length


def _check_jpeg(name: str, body: bytes) -> None:
    if body.count(b"\xff\xda") > MOST_SCANS:
        raise _harmful(name, "too many scans")
    exif = b""
    for marker, start, end in _segments(name, body):
        if marker == 0xFFE1 and body.startswith(_EXIF, start, end):
            exif += body[start + len(_EXIF) : end]  # Pillow puts several together
            if len(exif) > MOST_EXIF:
                break
        elif marker == 0xFFE2 and body.startswith(_MPF, start, end):
            _check_exif(name, body[start + len(_MPF) : end])
    _check_exif(name, exif)


def _segments(name: str, body: bytes) -> list[tuple[int, int, int]]:
    """Segments before a JPEG's first scan: marker, and where the content is. It walks as Pillow walks."""
    found: list[tuple[int, int, int]] = []
    at, fill = 2, 0
    while at + 4 <= len(body):
        marker = int.from_bytes(body[at : at + 2], "big")
        if marker == 0xFFDA:
            break
        if marker in MARKER:
            has_content = MARKER[marker][2] is not None
            end = at + 2 + (max(2, int.from_bytes(body[at + 2 : at + 4], "big")) if has_content else 0)
            found.append((marker, at + 4, end))
            at = end
        elif marker >> 8 != 0xFF or marker in (0xFF00, 0xFFFF):
            at += 2 if marker == 0xFF00 else 1
            fill += 1
        else:
            break  # no reader goes on
        if fill > MOST_FILL or len(found) > MOST_SEGMENTS:
            raise _harmful(name, "too many parts")
    return found


def _check_exif(name: str, exif: bytes) -> None:
    """Refuse EXIF whose values have more bytes than itself twice over: they lie on one another."""
    if len(exif) > MOST_EXIF:
        raise _harmful(name, "too much EXIF")
    while exif.startswith(_EXIF):
        exif = exif[len(_EXIF) :]
    if len(exif) < 8:
        return
    order = ">" if exif.startswith(b"MM") else "<"
    directories, seen, total = [struct.unpack_from(f"{order}I", exif, 4)[0]], set(), 0
    while directories:
        at = directories.pop()
        if at in seen:
            continue
        seen.add(at)
        for tag, kind, count, offset in _entries(exif, at, order):
            if tag in _SUB_DIRECTORIES:
                if kind not in (4, 13) or count != 1:
                    raise _harmful(name, "EXIF with a directory in an unusual place")
                directories.append(offset)
            total += min(count * _UNITS.get(kind, 0), len(exif))
        if total > 2 * len(exif) or len(seen) > len(_SUB_DIRECTORIES) + 1:
            raise _harmful(name, "EXIF whose values overlap")


def _entries(exif: bytes, at: int, order: str) -> list[tuple[int, int, int, int]]:
    """Entries of a directory: tag, type, count, and where the values are. Those that are cut off are left out."""
    if at + 2 > len(exif):
        return []
    count = min(struct.unpack_from(f"{order}H", exif, at)[0], (len(exif) - at - 2) // 12)
    return list(struct.iter_unpack(f"{order}HHII", exif[at + 2 : at + 2 + 12 * count]))


def _harmful(name: str, what: str) -> InputError:
    return InputError(f"{name} cannot be read safely: it has {what}; save it anew as PNG, without metadata.")

"""Pictures of OpenAI's edits: transparency as a mask, and a size that fits the picture."""

from __future__ import annotations

import asyncio
import io
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
from fastapi import UploadFile

from kandinsky22.errors import InputError
from kandinsky22_serve.pictures import MOST_BYTES, keep
from kandinsky22_serve.service import Service
from kandinsky22_serve.store.records import File

LONGEST = 1024
"""Pixels of the longer side of a picture whose size is "auto"."""
_MULTIPLE = 64


class Kept(NamedTuple):
    """A picture that was uploaded: its file, the mask that its transparency is (None where it has none), its size."""

    file: File
    mask: bytes | None
    width: int
    height: int


async def keep_upload(service: Service, name: str, upload: UploadFile) -> Kept:
    """Keep a picture that came in a form. Raises InputError, naming the field `name`, where it is none."""
    body = await upload.read(MOST_BYTES + 1)
    file = await keep(service, name, body, kind="input", file_name=name)
    mask, width, height = await asyncio.to_thread(_read, body)
    return Kept(file, mask, width, height)


async def keep_mask(service: Service, image: Kept, upload: UploadFile | None) -> File | None:
    """The mask for an edit of `image`, white where it is painted anew; None where nothing says so.

    It is the transparency of the mask that was sent, else that of the picture itself. Raises InputError where the mask
    that was sent has no transparent pixel.
    """
    body = image.mask
    if upload is not None:
        sent = await keep_upload(service, "mask", upload)
        await asyncio.to_thread(service.store.files.remove, sent.file)
        if sent.mask is None:
            raise InputError("mask has no fully transparent pixel; expected some where the picture is painted anew.")
        body = sent.mask
    return None if body is None else await keep(service, "mask", body, kind="input", file_name="mask")


def fitting(width: int, height: int) -> tuple[int, int]:
    """Width and height that are painted for a picture of this size: like it, at most LONGEST, multiples of 64."""
    scale = min(1.0, LONGEST / max(width, height))
    sides = (max(1, round(side * scale / _MULTIPLE)) * _MULTIPLE for side in (width, height))
    first, second = sides
    return first, second


def _read(body: bytes) -> tuple[bytes | None, int, int]:
    """A picture's mask as PNG, or None, and its size the right way up. It was checked before."""
    with PIL.Image.open(io.BytesIO(body)) as file:
        picture = PIL.ImageOps.exif_transpose(file)
        if not picture.has_transparency_data:
            return None, *picture.size
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    if (alpha > 0).all():
        return None, *picture.size
    stream = io.BytesIO()
    PIL.Image.fromarray(np.where(alpha == 0, 255, 0).astype(np.uint8)).save(stream, "png", compress_level=1)
    return stream.getvalue(), *picture.size

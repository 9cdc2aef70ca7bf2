"""Pictures that clients name: an uploaded file of ours, a data: URI, or a URL that is fetched through the one guard."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from kandinsky22.errors import InputError
from kandinsky22_serve.outside import client
from kandinsky22_serve.pictures_in import check_picture, data_uri
from kandinsky22_serve.service import MEDIA_TYPES, UPLOAD_SECONDS, Service
from kandinsky22_serve.store.records import File

MOST_BYTES = 32 << 20
"""Of a picture that a client gives."""
MOST_PIXELS = 4096 * 4096
FETCH_SECONDS = 20.0
_OURS = re.compile(r"/(?:v1/){0,2}files/([a-z0-9]{26})(?:\.[a-z]{3,4})?")


async def take(service: Service, name: str, value: str, base: str) -> File:
    """The file of the store that holds a picture; `base` is the address that the client reaches us at.

    Raises InputError, naming the input `name`, where it is none, too large, or cannot be had.
    """
    ours = await asyncio.to_thread(_own_file, service, value, base)
    if ours is not None:
        return ours
    if value[:5].lower() == "data:":
        body = data_uri(value, MOST_BYTES, name=name)
    elif urlsplit(value).scheme.lower() in ("http", "https"):
        allowed = service.settings.allow_input_host
        fetched = await client.fetch(
            value, most_bytes=MOST_BYTES, seconds=FETCH_SECONDS, allowed_hosts=allowed, name=name
        )
        body = fetched.body
    else:
        raise InputError(f"{name} is no picture; give an http(s) URL, a data: URI or an uploaded file.")
    return await keep(service, name, body, kind="input", file_name=name)


async def keep(service: Service, name: str, body: bytes, *, kind: str, file_name: str, metadata: str = "{}") -> File:
    """Keep the bytes of a picture, checked; raises InputError, naming the input `name`, where they are none."""

    def checked() -> File:
        found = check_picture(body, most_bytes=MOST_BYTES, most_pixels=MOST_PIXELS, name=name)
        media_type = MEDIA_TYPES[found.format.lower()]
        return service.store.files.add(body, media_type, kind, file_name, UPLOAD_SECONDS, metadata)

    return await asyncio.to_thread(checked)


async def forget(service: Service, files: Iterable[File]) -> None:
    """Remove pictures that came with a job which was refused; what a job has taken stays."""

    def forgotten() -> None:
        for file in files:
            now = service.store.files.get(file.id)
            if now is not None and now.kind == "input" and now.job is None:
                service.store.files.remove(now)

    await asyncio.to_thread(forgotten)


def _own_file(service: Service, value: str, base: str) -> File | None:
    """The file that came with this job, or a copy of that which a URL of ours names; None where it is none of ours.

    Fetching it would be refused: it is local.
    """
    try:
        url = urlsplit(value)
    except ValueError:
        return None
    public = urlsplit(service.settings.public_url or base)
    found = _OURS.fullmatch(url.path)
    if url.scheme not in ("http", "https") or not found or url.netloc not in (public.netloc, urlsplit(base).netloc):
        return None
    file = service.store.files.get(found[1])
    gone = InputError("The uploaded file does not exist or has expired; upload it again.")
    if file is None:
        raise gone
    if file.kind == "input" and file.job is None:
        return file  # it came with this very job
    try:
        # A copy: the job keeps it for as long as it needs it, and what it is of (an upload, another job's picture)
        # stays what it was.
        return service.store.files.copy(file, UPLOAD_SECONDS)
    except FileNotFoundError:
        raise gone from None

"""Lists a page at a time, with addresses of the next and the previous page."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pydantic import BaseModel

from kandinsky22_serve.problems import Problem

SIZE = 100
"""Entries of a page, as Replicate's lists have."""

Entry = TypeVar("Entry")
Shown = TypeVar("Shown")


class Page(BaseModel, Generic[Shown]):
    """One page. `next` has what is older, `previous` what is newer."""

    results: list[Shown]
    next: str | None = None
    previous: str | None = None


def page(
    cursor: str | None,
    url: str,
    *,
    older: Callable[[int, str | None], Sequence[Entry]],
    newer: Callable[[int, str], Sequence[Entry]],
    key: Callable[[Entry], str],
    shown: Callable[[Entry], Shown],
) -> Page[Shown]:
    """A page of a list whose newest entries come first.

    `older(limit, key)` are those before a key, or the newest; `newer(limit, key)` those that came next after it. Raises
    Problem where the cursor is none of ours.
    """
    way, at = _read(cursor)
    try:
        found = list(newer(SIZE + 1, at)) if way == "newer" else list(older(SIZE + 1, at or None))
    except ValueError:
        raise _no_cursor() from None
    more = len(found) > SIZE
    entries = found[-SIZE:] if way == "newer" else found[:SIZE]
    has_older = bool(entries) and (way == "newer" or more)
    has_newer = bool(entries) and (more if way == "newer" else bool(at))
    return Page(
        results=[shown(each) for each in entries],
        next=f"{url}?cursor={_written('older', key(entries[-1]))}" if has_older else None,
        previous=f"{url}?cursor={_written('newer', key(entries[0]))}" if has_newer else None,
    )


def _written(way: str, key: str) -> str:
    return base64.urlsafe_b64encode(f"{way}:{key}".encode()).decode().rstrip("=")


def _read(cursor: str | None) -> tuple[str, str]:
    if not cursor:
        return "older", ""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        raise _no_cursor() from None
    way, _, key = text.partition(":")
    if way not in ("older", "newer") or not key or len(key) > 40:
        raise _no_cursor()
    return way, key


def _no_cursor() -> Problem:
    return Problem(422, "The cursor is none of this list; take the address in next or previous of a page.")

"""What the command line prints of others' text: `printable`, and words as a shell reads them back, on one line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from kandinsky22.errors import printable, replaced

__all__ = ["can_be_said", "command_line", "printable"]

_LONGEST = 1 << 17
"""Bytes of an argument, with the NUL behind it: Linux takes no more."""


def command_line(words: Sequence[str]) -> str:
    """Words as bash and zsh read them back, in one line that is `printable`.

    What is not printable stands in $'…', byte by byte; so do the bytes of a file's name that are no text, which Python
    keeps as lone surrogates.
    """
    return replaced(shlex.join(words), _in_shell)


def can_be_said(word: str) -> bool:
    """Whether a program can be given `word`, exactly, as an argument: it has no NUL, is not too long, and is bytes."""
    try:
        data = word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return b"\0" not in data and len(data) < _LONGEST and data.decode("utf-8", "surrogateescape") == word


def _in_shell(character: str) -> str:
    # shlex has put it between single quotes, as all that is not plain ASCII.
    code = "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    return f"'$'{code}''"

"""Text of others, for a terminal: a file's name, a prompt or what a picture tells is shown and cannot act.

A terminal obeys some characters (ESC, CR, BEL, C1), others forge lines, turn the direction of what follows, or are not
to be seen at all. Each is shown as Python's escape. Everything else stays: letters of every script, CJK, emoji; but an
emoji of several is shown as its parts, since what joins them is invisible.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Callable, Sequence

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp", "Co")
"""Unicode's categories: controls, formats such as bidi overrides, lone surrogates, separators of lines, private use."""
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2065\u3164\uffa0\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff]")
"""Those of other categories that take no room or are blank: fillers, joiners, and what Unicode keeps for such."""
_LONGEST = 1 << 17
"""Bytes of an argument, with the NUL behind it: Linux takes no more."""


def printable(text: str) -> str:
    """`text` on one line, without anything that a terminal obeys or hides; in time that grows with its length."""
    return _replaced(text, lambda each: each.encode("unicode_escape").decode())


def command_line(words: Sequence[str]) -> str:
    """Words as bash and zsh read them back, in one line that is `printable`.

    What is not printable stands in $'…', byte by byte; so do the bytes of a file's name that are no text, which Python
    keeps as lone surrogates.
    """
    return _replaced(shlex.join(words), _in_shell)


def can_be_said(word: str) -> bool:
    """Whether a program can be given `word`, exactly, as an argument: it has no NUL, is not too long, and is bytes."""
    try:
        data = word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return b"\0" not in data and len(data) < _LONGEST and data.decode("utf-8", "surrogateescape") == word


def _replaced(text: str, escape: Callable[[str], str]) -> str:
    """`text` with what is not seen in the form that `escape` gives it."""
    return text.translate({ord(each): escape(each) for each in set(text) if not _is_seen(each)})


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in _UNSEEN and not _BLANK.match(character)


def _in_shell(character: str) -> str:
    # shlex has put it between single quotes, as all that is not plain ASCII.
    code = "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    return f"'$'{code}''"

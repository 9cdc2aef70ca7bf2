"""Text of others, for a terminal: a file's name, a prompt or what a picture tells is shown and cannot act.

A terminal obeys some characters (ESC, CR, BEL, C1), others forge lines, turn the direction of what follows, or are not
to be seen at all. Each is shown as Python's escape. Everything else stays: letters of every script, CJK, emoji; but an
emoji of several is shown as its parts, since what joins them is invisible.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp", "Co")
"""Unicode's categories: controls, formats such as bidi overrides, lone surrogates, separators of lines, private use."""
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2065\u3164\uffa0\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff]")
"""Those of other categories that take no room or are blank: fillers, joiners, and what Unicode keeps for such."""


def printable(text: str) -> str:
    """`text` on one line, without anything that a terminal obeys or hides; in time that grows with its length."""
    if text.isprintable() and not _BLANK.search(text):
        return text
    return "".join(each if _is_seen(each) else _escape(each) for each in text)


def command_line(words: Sequence[str]) -> str:
    """Words as bash and zsh read them back, in one line that is `printable`.

    What is not printable stands in $'…', byte by byte; so do the bytes of a file's name that are no text, which Python
    keeps as lone surrogates.
    """
    return "".join(each if _is_seen(each) else _in_shell(each) for each in shlex.join(words))


def can_be_said(word: str) -> bool:
    """Whether a program can be given `word`, exactly, as an argument: it has no NUL, and is bytes in UTF-8 or not."""
    try:
        return "\0" not in word and word.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == word
    except UnicodeEncodeError:
        return False


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in _UNSEEN and not _BLANK.match(character)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _in_shell(character: str) -> str:
    # shlex has put it between single quotes, as all that is not plain ASCII.
    code = "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    return f"'$'{code}''"

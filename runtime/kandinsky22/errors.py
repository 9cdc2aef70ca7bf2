"""Errors that a user can cause: every message says what was wrong, what was expected and what to do.

Messages repeat names of files, prompts and other text that anybody may have written. A terminal obeys some characters
(ESC, CR, BEL, C1), others forge lines, turn the direction of what follows, or are not to be seen at all. Each is shown
as Python's escape. Everything else stays: letters of every script, CJK, emoji; but an emoji of several is shown as its
parts, since what joins them is invisible.
"""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Callable, Collection

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp", "Co")
"""Unicode's categories: controls, formats such as bidi overrides, lone surrogates, separators of lines, private use."""
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2065\u3164\uffa0\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff]")
"""Those of other categories that take no room or are blank: fillers, joiners, and what Unicode keeps for such."""


class KandinskyError(Exception):
    """An error that the user can mend. The command line prints its one sentence and exits with 1."""

    def __init__(self, message: str) -> None:
        """`message` is one sentence; whatever text it repeats, what is raised has one line, and is `printable`."""
        super().__init__(printable(message))


class InputError(KandinskyError, ValueError):
    """An argument is outside what is possible: a size, a number of steps, a seed, a prompt, a picture."""


class MemoryLimitError(InputError):
    """By the estimate, a call would take more memory than the limit."""


class BundleError(KandinskyError):
    """A bundle (the folder that the exporter writes) is missing, incomplete, altered or of another format."""


class BackendError(KandinskyError):
    """A backend is not installed, cannot run on this machine, or failed while it ran."""


class CheckpointError(KandinskyError):
    """A checkpoint cannot be exported: not found, of another class, without a component, or not in safetensors."""


class ExportError(KandinskyError):
    """An exported graph does not compute what its torch module does, or could not be written."""


class Cancelled(KandinskyError):  # noqa: N818 - not an error of anybody's
    """A callback asked to stop: the whole call, or some of its pictures while the others go on.

    Attributes:
        pictures: Places of the pictures that end, among all of the call, from 0; None: all of them.
    """

    def __init__(self, pictures: Collection[int] | str | None = None) -> None:
        """`pictures` are places, or None, or a text that tells why the whole call ends."""
        self.pictures: frozenset[int] | None = None
        reason = "The callback asked to stop."
        if isinstance(pictures, str):
            reason = pictures
        elif pictures is not None:
            self.pictures = frozenset(map(operator.index, pictures))
            reason = "The callback asked to stop all pictures that were left."
        super().__init__(reason)


def first_line(error: BaseException) -> str:
    """The first line of a library's error, to be part of our one sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip().rstrip(".")


def last_line(error: BaseException) -> str:
    """The last line of a library's error, for libraries that first name the place in their sources."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip().rstrip(".")


def shown(value: object, longest: int = 80) -> str:
    """A user's value as a message quotes it: on one line, cut off where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of any class; a number of more digits than Python prints, too
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= longest else text[: longest - 3] + "..."


def printable(text: str) -> str:
    """`text` on one line, without anything that a terminal obeys or hides; in time that grows with its length."""
    return replaced(text, lambda each: each.encode("unicode_escape").decode())


def replaced(text: str, escape: Callable[[str], str]) -> str:
    """`text` with each character that is not seen, or that ends a line, in the form that `escape` gives it."""
    return text.translate({ord(each): escape(each) for each in set(text) if not _is_seen(each)})


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in _UNSEEN and not _BLANK.match(character)

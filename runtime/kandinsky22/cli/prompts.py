"""Files of prompts, one a line."""

from __future__ import annotations

import sys

from kandinsky22 import files
from kandinsky22.errors import InputError

MOST_BYTES = 1 << 24
"""Most bytes of a file of prompts."""


def read_prompts(name: str) -> list[str]:
    """The lines of a file that are not blank; "-" is standard input.

    Raises InputError where it is not text in UTF-8 or has more than `MOST_BYTES`, OSError where it cannot be read.
    """
    data = _standard_input() if name == "-" else files.read_regular(name, MOST_BYTES)
    if len(data) > MOST_BYTES:
        raise InputError(f"Standard input has more than {MOST_BYTES >> 20} MiB of prompts; give fewer at a time.")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"The file of prompts {name} is not text in UTF-8 ({error.reason}).") from error
    return [line.strip() for line in lines if line.strip()]


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise InputError("Standard input is closed; give the prompts to it, or name a file with --prompts-file.")
    return sys.stdin.buffer.read(MOST_BYTES + 1)

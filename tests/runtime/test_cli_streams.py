"""Standard output, error and input that are closed, full, or read by nobody: one sentence or none, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import PIL.Image
import pytest

from kandinsky22.bundle.bundle import Bundle
from kandinsky22.images import writing

from .conftest import QUICK
from .test_cli_process import ENVIRONMENT

CLOSED = "error: Standard output is closed; send it to a file, or to /dev/null.\n"
FULL = "error: standard output: No space left on device.\n"


def shell(line: str, *arguments: object, variables: Mapping[str, str] = {}) -> tuple[int, str, str]:
    """A line for a shell, in which "$@" is the program with its arguments."""
    command = ["bash", "-c", line, "bash", sys.executable, "-m", "kandinsky22", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, **variables}, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    writing.save(PIL.Image.new("RGB", (8, 8)), tmp_path / "a.png", {"arguments": {"prompt": "a"}})
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    ("line", "unbuffered", "expected"),
    [
        ('"$@" >&-', "", (1, "", CLOSED)),
        ('"$@" >&- 2>&-', "", (1, "", "")),
        ('"$@" </dev/null >/dev/full', "", (1, "", FULL)),
        ('"$@" </dev/null >/dev/full', "1", (1, "", FULL)),
        ('"$@" 1</dev/null', "", (1, "", "error: standard output: Bad file descriptor.\n")),
        ('"$@" | head -0; exit ${PIPESTATUS[0]}', "", (141, "", "")),
        ('"$@" | head -0; exit ${PIPESTATUS[0]}', "1", (141, "", "")),
        ('"$@" >/dev/full 2>&1', "", (1, "", "")),
    ],
)
def test_what_cannot_be_printed_is_one_sentence(
    line: str, unbuffered: str, expected: tuple[int, str, str], picture: Path
) -> None:
    assert shell(line, "show", picture, variables={"PYTHONUNBUFFERED": unbuffered}) == expected


def test_nor_can_help(tmp_path: Path) -> None:
    assert shell('"$@" >/dev/full', "show", "--help") == (1, "", FULL)


def test_messages_that_nobody_reads_stop_nothing(picture: Path, handmade_bundle: Bundle, tmp_path: Path) -> None:
    code, out, _ = shell('"$@" 2>&-', "show", picture)
    assert (code, out.splitlines()[0].split()) == (0, ["prompt", "a"])
    made = tmp_path / "b.png"
    assert shell('"$@" 2>&-', "show", made) == (1, "", "")
    generate = ("-vv", "generate", handmade_bundle.path, "a", *QUICK, "-o", made)
    assert shell('"$@" 2>/dev/full', *generate) == (0, f"{made}\n", "")


def test_prompts_from_a_closed_input_are_one_sentence(tmp_path: Path) -> None:
    said = "error: Standard input is closed; give the prompts to it, or name a file with --prompts-file.\n"
    assert shell('"$@" <&-', "generate", tmp_path, "--prompts-file", "-", *QUICK) == (1, "", said)

"""What may lie where a program wants to write, and the state of a tree that nobody may touch."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

State = dict[str, tuple[int, int, bytes]]


def state(folder: Path) -> State:
    """Everything in a tree, by path: type and permissions, time of the last write in ns, and bytes or target of a link.

    Times of folders are left out: a name in one may be taken for a moment and given back.
    """
    found: State = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = b""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.fsencode(os.readlink(path))
        is_folder = stat.S_ISDIR(status.st_mode)
        found[str(path.relative_to(folder))] = (status.st_mode, 0 if is_folder else status.st_mtime_ns, content)
    return found


def someones(folder: Path) -> Path:
    """A folder of another user's things, with names such as ours, and the ages of long ago."""
    folder.mkdir()
    for name in (
        "letter",
        "manifest.json",
        "decoder_step.json",
        "decoder_step-0123456789abcdef.plan",
        ".decoder_step.plan.0123456789abcdef.part",
        "old.plan",
        "old.part",
    ):
        (folder / name).write_text("dear")
        os.utime(folder / name, (1e9, 1e9))
    return folder


def _link_to_a_file(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "letter")


def _link_to_a_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _dangling_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "nothing")


def _pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _folder_with_things(path: Path, outside: Path) -> None:
    someones(path)


def _hard_link(path: Path, outside: Path) -> None:
    path.hardlink_to(outside / "letter")


LINK_TO_A_FILE, LINK_TO_A_FOLDER, DANGLING, PIPE = _link_to_a_file, _link_to_a_folder, _dangling_link, _pipe
FOLDER, HARD_LINK = _folder_with_things, _hard_link
LINKS = (LINK_TO_A_FILE, LINK_TO_A_FOLDER, DANGLING)
Intruder = Callable[[Path, Path], None]

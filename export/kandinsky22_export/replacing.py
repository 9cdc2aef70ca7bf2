"""The folder of a bundle: written beside its destination, and given its name when it is whole.

Only what is provably a bundle of ours is replaced or cleared away; `kandinsky22.bundle.contents` says what that is. An
export that is killed leaves `.NAME.xxxxxxxx.tmp`, and in the worst case the old bundle in `.NAME.xxxxxxxx.tmp.old`; the
next export to the same destination clears them away, or puts the old bundle back.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kandinsky22.bundle import bundle, reading
from kandinsky22.bundle.contents import manifest_files, owned_files, walk
from kandinsky22.errors import ExportError
from kandinsky22.files import kind_of, locked_folder, read_file

log = logging.getLogger(__name__)

MARKER = ".kandinsky22-export"
"""File in a temporary folder until the bundle is whole: the folder is an export's, and holds nothing else."""
MARK = b"kandinsky22-export writes a bundle here.\n"


@contextlib.contextmanager
def replacing(destination: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside `destination` that takes its place at the end, or is removed where that is not reached.

    Raises ExportError where the destination is taken or cannot be written. A KeyboardInterrupt that comes when the
    bundle has its place already carries a note that says so.
    """
    try:
        _require_free(destination, force)
        destination.parent.mkdir(parents=True, exist_ok=True)
        if _clear_leftovers(destination):
            _require_free(destination, force)
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".tmp", dir=destination.parent))
    except OSError as error:
        raise ExportError(f"{destination.parent} cannot be written: {error.strerror}.") from error
    mine = folder.lstat()
    with contextlib.ExitStack() as held:
        try:
            _hold(folder, held)
            (folder / MARKER).write_bytes(MARK)
            yield folder
            folder.chmod(0o777 & ~umask())  # mkdtemp keeps others out
            (folder / MARKER).unlink()
            _swap(folder, destination, force)
        except OSError as error:
            raise ExportError(_what_happened(error, folder, destination, mine)) from error
        except KeyboardInterrupt as stop:
            if _has_place(destination, mine):
                stop.add_note(f"{destination} is written.")
            raise
        finally:
            try:
                shutil.rmtree(folder, ignore_errors=True)
            except KeyboardInterrupt:  # the first one, just now: the command line hears no second
                shutil.rmtree(folder, ignore_errors=True)
                raise


def _require_free(destination: Path, force: bool) -> None:
    """Raise ExportError where something has the destination's name, unless it is a bundle and `force` says so."""
    kind = kind_of(destination)
    if not kind:
        return
    if kind == "a link":
        raise ExportError(f"{destination} is a link to {os.readlink(destination)}: name the folder itself with -o.")
    if not force:
        raise ExportError(f"{destination} exists: choose another place with -o, or replace it with --force.")
    try:
        _, foreign = owned_files(destination)
    except ValueError as error:
        raise ExportError(f"{destination} exists and is no bundle: it is not replaced ({error}).") from error
    if foreign is not None:
        raise ExportError(f"{foreign} is not of the bundle; move it away, or choose another folder with -o.")


def _swap(folder: Path, destination: Path, force: bool) -> None:
    """Put `folder` in `destination`'s place; an old bundle is removed only after that, and put back if it fails."""
    _require_free(destination, force)  # as much may have changed as the export took time
    if not kind_of(destination):
        folder.rename(destination)
        return
    old = _old(folder)
    with contextlib.ExitStack() as held:
        _hold(destination, held)
        try:
            destination.rename(old)
            folder.rename(destination)
            _remove(old)
        finally:  # also for a Ctrl-C between any two of these
            if kind_of(old):
                _remove(old) if kind_of(destination) else old.rename(destination)


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _has_place(destination: Path, mine: os.stat_result) -> bool:
    """Whether the folder that was `mine` under its temporary name has the destination's."""
    return kind_of(destination) != "" and os.path.samestat(destination.lstat(), mine)


def _what_happened(error: OSError, folder: Path, destination: Path, mine: os.stat_result) -> str:
    """The sentence about an export that failed, by what is on the disk now."""
    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    old = _old(folder)
    if _has_place(destination, mine):
        return f"{destination} is written, but {old}, which it replaced, could not be removed: {reason}."
    kept = f"the old bundle is in {old}, put it back" if kind_of(old) else "nothing of it was kept"
    return f"{destination} could not be written: {reason}; {kept}."


def _hold(folder: Path, held: contextlib.ExitStack) -> None:
    """Lock a folder until `held` ends, so that no other export takes it for a leftover; where folders can be locked."""
    with contextlib.suppress(OSError):  # elsewhere nothing is cleared away
        held.enter_context(locked_folder(folder))


def _clear_leftovers(destination: Path) -> bool:
    """Clear away what killed exports to `destination` left, as far as it is provably theirs; whether any was there."""
    pattern = re.compile(rf"\.{re.escape(destination.name)}\.[a-z0-9_]{{8}}\.tmp(\.old)?")
    cleared = False
    for path in sorted(each for each in destination.parent.iterdir() if pattern.fullmatch(each.name)):
        try:
            if kind_of(path) == "a folder":
                with locked_folder(path) as alone:
                    cleared |= alone and path.lstat().st_uid == os.geteuid() and _clear(path, destination)
        except OSError as error:
            log.warning("%s was left by an export that was killed, and cannot be cleared away: %s", path, error)
    return cleared


def _clear(leftover: Path, destination: Path) -> bool:
    """Remove a leftover, or put the old bundle back where a kill came between two renames; whether it was ours."""
    if _files(leftover) is None:
        return False
    if leftover.suffix == ".old":
        if not kind_of(destination) and _is_whole(leftover):
            log.warning("%s is put back: the export that was replacing it was killed", destination)
            leftover.rename(destination)
            return True
        if kind_of(destination) and not _is_whole(destination):
            return False  # nobody knows what that is: the old bundle may be the only one
    log.info("%s was left by an export that was killed: it is removed", leftover)
    _remove(leftover)
    return True


def _is_whole(folder: Path) -> bool:
    """Whether a folder is a bundle with every file that its manifest names."""
    try:
        return all(kind_of(folder / name) == "a file" for name in manifest_files(folder))
    except ValueError:
        return False


def _files(folder: Path) -> set[Path] | None:
    """The files in a leftover or an old bundle; None where one of them, or a link, may be somebody else's.

    Where a kill came before the first file or after the last, there are none: empty folders are nobody's.
    """
    known = set[Path]()
    with contextlib.suppress(ValueError):
        known |= owned_files(folder)[0]
    marker = folder / MARKER
    if kind_of(marker) == "a file" and MARK.startswith(read_file(marker, len(MARK) + 1)):  # a kill may cut it short
        known |= {marker, *(folder / name for name in (bundle.MANIFEST, reading.TOKENIZER, reading.CONSTANTS))}
        known |= {path for path in walk(folder / "onnx") if re.search(r"\.onnx(\.data)?$", path.name)}
    found = set(walk(folder))
    return found if found <= known and all(kind_of(path) == "a file" for path in found) else None


def _remove(folder: Path) -> None:
    """Remove a leftover or an old bundle, file by file. Raises OSError where something in it stays."""
    files = _files(folder)
    if files is None:
        raise OSError(errno.ENOTEMPTY, "something in it is not of the bundle", str(folder))
    # Those that tell whose it is go last: the rest can be removed by the next export then.
    last = {folder / bundle.MANIFEST: 1, folder / MARKER: 2}
    for path in sorted(files, key=lambda path: last.get(path, 0)):
        path.unlink()
    for inner, _, _ in os.walk(folder, topdown=False):
        os.rmdir(inner)


def umask() -> int:
    """The mask of permissions for new files of this process."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Files that are whole or absent: the one place that writes them. And locks, and files of others, which are read.

A file is written under a temporary name in the folder where it belongs, and gets its own name when everything is on the
disk. Whatever happens before that (an error, Ctrl-C, a power cut), what had the name still has it. A link that has the
name is replaced, and what it leads to is not touched; a device, a pipe or a folder is not replaced.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

TEMPORARY = ".part"
"""Suffix of files that are being written. After a power cut or a kill they stay, and may be removed."""

_TEMPORARY_NAME = re.compile(rf"\..{{1,40}}\.[0-9a-f]{{16}}{re.escape(TEMPORARY)}", re.DOTALL)
_KINDS = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link"}
_NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Flags of `os.open`: links are not followed, and pipes are not waited for."""


def kind_of(path: Path) -> str:
    """What has the name `path`, in words and without following links; "" where nothing has it.

    "a file" is a regular file; pipes, sockets and devices are "a pipe or device". Raises OSError where nobody may look.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return _KINDS.get(stat.S_IFMT(mode), "a pipe or device")


def is_temporary(name: str) -> bool:
    """Whether `name` is one that a NewFile has before it is committed."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def is_ours_alone(status: os.stat_result) -> bool:
    """Whether what has this status belongs to this user or root, and its rights let nobody else write to it.

    False where the system knows no such owners and rights, as Windows.
    """
    user = getattr(os, "geteuid", None)
    if user is None:
        return False
    return status.st_uid in (0, user()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class NewFile:
    """A file under a temporary name, until `commit` gives it its own. It counts its bytes and their SHA-256."""

    def __init__(self, folder: Path, name: str, *, mode: int = 0o666) -> None:
        """Open a temporary file in `folder`, whose own name tells what it becomes. Raises OSError where it cannot.

        Its rights are `mode` but for what the process's umask takes away.
        """
        # Hidden, and of its own: two processes may write a file of one name. Cut short: names have at most 255 bytes.
        self._path = folder / f".{name[:40]}.{secrets.token_hex(8)}{TEMPORARY}"
        self._file = open(self._path, "xb", opener=lambda path, flags: os.open(path, flags, mode))  # noqa: SIM115
        self._digest = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of what has been written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`. Raises OSError where there is no room."""
        self._file.write(data)
        self._digest.update(data)
        self.bytes += memoryview(data).nbytes

    def commit(self, name: str, *, replace: bool = True) -> None:
        """Name the file `name`, in its folder: from here on it is there in its full size, even after a power cut.

        A file or a link that has the name is replaced, or stays where `replace` is false: FileExistsError is then
        raised. Raises OSError where the disk fails, and where the name is, or leads to, a folder, a pipe or a device.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = self._path.with_name(name)
        if replace:
            if path.exists() and not path.is_file():  # as /dev/null and /dev/stdout, which root could replace
                raise OSError(errno.EINVAL, "only a file can be replaced, and this is none", str(path))
            self._path.replace(path)
        else:
            self._take_free_name(path)
        _sync_folder(path.parent)

    def discard(self) -> None:
        """Remove what was written, if it was not committed."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _take_free_name(self, path: Path) -> None:
        """Take a name that nobody has: a hard link fails where another process was faster, a rename would replace."""
        try:
            path.hardlink_to(self._path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if kind_of(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            self._path.replace(path)


@contextlib.contextmanager
def new_file(folder: Path, name: str, *, mode: int = 0o666) -> Iterator[NewFile]:
    """A NewFile that is discarded at the end unless it was committed."""
    file = NewFile(folder, name, mode=mode)
    try:
        yield file
    finally:
        file.discard()


def write_file(path: Path, data: bytes, *, replace: bool = True, mode: int = 0o666) -> None:
    """Write a file at once, whole or not at all, with the rights `mode` but for what the umask takes away.

    Raises OSError, about `path` and not about the temporary file, where it cannot be written; FileExistsError where it
    is there and `replace` is false.
    """
    try:
        with new_file(path.parent, path.name, mode=mode) as file:
            file.write(data)
            file.commit(path.name, replace=replace)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def new_folder(path: Path, replaces: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """A folder under a temporary name beside `path`, which gets that name at the end of the block, whole.

    Where the block is left early, the folder goes, with all that is in it, and so do those above it that were made.
    Files are all that may be put into it. An empty folder that has the name already is replaced; one that `replaces`
    says yes to, too, with the files in it. Raises FileExistsError where anything else has the name, before the block
    or after it, and OSError where the folder cannot be made.
    """
    _require_free(path, replaces)
    made: list[Path] = []
    new = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        try:
            make_folder(path.parent, made)
            new.mkdir()
        except OSError as error:
            # That something has the name of a folder above is no reason to say that `path` exists.
            number = errno.ENOTDIR if isinstance(error, FileExistsError) else error.errno or errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from error
        yield new
        _sync_folder(new)
        _swap(new, path, replaces)
        made.clear()
    finally:
        _remove_folder(new)
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # something else was put into it
                folder.rmdir()


def make_folder(folder: Path, made: list[Path]) -> None:
    """Make `folder` and those above it; each that was missing is added to `made`, from the outermost in."""
    for each in [*reversed(folder.parents), folder]:
        if not each.is_dir():
            made.append(each)  # first: Ctrl-C may come between
            each.mkdir()


def _require_free(path: Path, replaces: Callable[[Path], bool]) -> None:
    """Raise FileExistsError where something has the name `path` that may not be replaced."""
    kind = kind_of(path)
    nameless = path.name in ("", "..")  # as "." and "/" are, which cannot be renamed
    if kind and (nameless or kind != "a folder" or (any(path.iterdir()) and not replaces(path))):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _swap(new: Path, path: Path, replaces: Callable[[Path], bool]) -> None:
    """Give a folder its name; what had it is removed after that, and put back where it fails."""
    _require_free(path, replaces)  # as much may have changed as the block took time
    old = new.with_name(f"{new.name}.old")
    if kind_of(path):
        path.rename(old)
    try:
        new.rename(path)
    finally:
        if kind_of(old) and not kind_of(path):
            old.rename(path)
    _sync_folder(path.parent)
    _remove_folder(old)


def _remove_folder(folder: Path) -> None:
    """Remove a folder of files, where there is one."""
    if not kind_of(folder):
        return
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()


def _sync_folder(folder: Path) -> None:
    """Make a new name in `folder` outlast a power cut, where folders can be synchronised: not on Windows."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def read_file(path: Path, most: int = -1) -> bytes:
    """The bytes of a regular file, no more than `most`, opened without following a link. Raises OSError otherwise."""
    with open(_opened(path, os.O_RDONLY, "a file"), "rb") as file:
        return file.read(most)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether the lock of file `path` could be taken. It is held until the end, or until the process is killed.

    The file is made where there is none, and never written to. Raises OSError where it is no regular file.
    """
    with _held(path, os.O_RDWR | os.O_CREAT, "a file") as alone:
        yield alone


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[bool]:
    """Whether the lock of the folder `path` could be taken: as `locked`, and kept when the folder gets another name.

    Raises OSError where it is no folder, or the system locks none: Windows, and some network file systems.
    """
    if not hasattr(os, "O_DIRECTORY"):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(path))
    with _held(path, os.O_RDONLY | os.O_DIRECTORY, "a folder") as alone:
        yield alone


@contextlib.contextmanager
def _held(path: Path, flags: int, kind: str) -> Iterator[bool]:
    """The lock of what has the name `path`."""
    descriptor = _opened(path, flags, kind)
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _opened(path: Path, flags: int, kind: str) -> int:
    """A descriptor of what has the name `path`, which is of a kind, without following a link.

    Raises OSError where it is of another: it is not opened then, since opening a device may do something.
    """
    if (found := kind_of(path)) not in ("", kind):
        raise OSError(errno.EINVAL, f"this is {found}, expected {kind}", str(path))
    descriptor = os.open(path, flags | _NOT_FOLLOWED, 0o666)
    if _KINDS.get(stat.S_IFMT(os.fstat(descriptor).st_mode)) != kind:  # it was replaced in between
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"this is not {kind}", str(path))
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: two builds at once are the user's to avoid
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_NO_FILES = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
"""What has a name and is neither a file nor a folder: whoever reads it may wait for ever."""


def open_regular(path: str | Path, most_bytes: int) -> BufferedReader:
    """Open a file of somebody else for reading, without ever waiting for what only looks like a file.

    Args:
        path: Its path; links are followed.
        most_bytes: The most that it may hold.

    Returns:
        The file, in bytes.

    Raises:
        OSError: There is none, it is a folder, a FIFO, a device or a socket, or it is larger.
    """
    try:
        status = os.stat(path)
    except ValueError:  # NUL, or half a surrogate pair
        raise OSError(errno.EINVAL, "Is no name that a file can have", str(path)) from None
    _refuse(path, status, most_bytes)  # before it is opened: that alone may do something to a device
    # Not blocking: another process may have put a FIFO there by now.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    file = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115 - the caller closes it
    try:
        _refuse(path, os.fstat(file.fileno()), most_bytes)
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: str | Path, most_bytes: int) -> bytes:
    """The bytes of a file of somebody else. Arguments and errors are those of `open_regular`."""
    with open_regular(path, most_bytes) as file:
        data = file.read(most_bytes + 1)  # the size that it had may be no longer true
    if len(data) > most_bytes:
        raise _too_large(path, most_bytes)
    return data


def _refuse(path: str | Path, status: os.stat_result, most_bytes: int) -> None:
    """Raise OSError about what is no regular file, or too large."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        kind = _NO_FILES.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"Is {kind}, where a regular file was expected", str(path))
    if status.st_size > most_bytes:
        raise _too_large(path, most_bytes)


def _too_large(path: str | Path, most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"Is larger than {most_bytes >> 20} MiB, which is the most that is read", str(path))

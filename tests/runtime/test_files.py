"""Files that are whole or absent, whatever fails and whoever else writes."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kandinsky22 import files


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    with files.new_file(tmp_path, "weights") as file:
        for part in (b"one", memoryview(b"two")):
            file.write(part)
        assert not (tmp_path / "weights").exists()
        assert len(list(tmp_path.glob(f"*{files.TEMPORARY}"))) == 1  # as a sweep of a folder finds it
        assert (file.sha256, file.bytes) == (hashlib.sha256(b"onetwo").hexdigest(), 6)
        file.commit(f"weights-{file.bytes}")
    assert [path.name for path in tmp_path.iterdir()] == ["weights-6"]
    assert (tmp_path / "weights-6").read_bytes() == b"onetwo"


@pytest.mark.parametrize("end", [lambda: None, KeyboardInterrupt])
def test_what_is_not_committed_goes(end: Callable[[], BaseException | None], tmp_path: Path) -> None:
    def write() -> None:
        with files.new_file(tmp_path, "weights") as file:
            file.write(b"one")
            if error := end():
                raise error

    if end():
        with pytest.raises(KeyboardInterrupt):
            write()
    else:
        write()
    assert not os.listdir(tmp_path)


def test_a_file_is_replaced_or_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_file(path, b"first")
    files.write_file(path, b"second")
    with pytest.raises(FileExistsError) as raised:
        files.write_file(path, b"third", replace=False)
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["a.json"]


def test_of_many_who_want_a_new_name_one_gets_it(tmp_path: Path) -> None:
    path, won = tmp_path / "picture.png", []
    together = threading.Barrier(8)

    def write(number: int) -> None:
        together.wait()
        try:
            files.write_file(path, bytes([number]) * 100_000, replace=False)
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert path.read_bytes() == bytes(won) * 100_000
    assert os.listdir(tmp_path) == ["picture.png"]


def test_writers_of_one_name_do_not_mix_what_they_write(tmp_path: Path) -> None:
    with files.new_file(tmp_path, "a") as first, files.new_file(tmp_path, "a") as second:
        first.write(b"1111")
        second.write(b"22")
        first.commit("a")
        assert (tmp_path / "a").read_bytes() == b"1111"
        second.commit("a")
    assert (tmp_path / "a").read_bytes() == b"22"


@pytest.mark.parametrize("name", ["n" * 255, "я" * 127])
def test_a_name_may_be_as_long_as_file_systems_allow(name: str, tmp_path: Path) -> None:
    files.write_file(tmp_path / name, b"", replace=False)
    assert os.listdir(tmp_path) == [name]


def test_errors_name_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        files.write_file(tmp_path / "no folder" / "a", b"")
    assert raised.value.filename == str(tmp_path / "no folder" / "a")


@pytest.mark.parametrize(("code", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_synchronised_is_no_failure_but_a_broken_disk_is(
    code: int, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse_folders)
    if fails:
        with pytest.raises(OSError, match="Input/output error"):
            files.write_file(tmp_path / "a", b"data")
    else:
        files.write_file(tmp_path / "a", b"data")
    assert (tmp_path / "a").read_bytes() == b"data"

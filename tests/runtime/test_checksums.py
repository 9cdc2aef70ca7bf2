"""SHA-256 of files, compared once and not again until somebody may have written to them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kandinsky22.bundle import checksums, remembered
from kandinsky22.bundle.checksums import AlteredError, HeldFile

needs_owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners here: nothing is remembered")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of this user's own that counts as written long ago, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", -1.0)
    (tmp_path / "bundle").mkdir(mode=0o755)
    (tmp_path / "bundle").chmod(0o755)  # whatever the umask
    path = tmp_path / "bundle" / "weights"
    path.write_bytes(b"weights")
    path.chmod(0o644)
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read, in order."""
    found: list[str] = []
    digest = checksums._digest
    monkeypatch.setattr(checksums, "_digest", lambda file: found.append(file.name) or digest(file))
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


WEIGHTS = sha256(b"weights")


def matches(path: Path, expected: str = WEIGHTS, **options: bool) -> bool:
    try:
        checksums.compare(path, expected, **options)
    except AlteredError:
        return False
    return True


def record_of(file: Path) -> Path:
    (record,) = (file.parents[1] / "cache").rglob("*.json")
    return record


@needs_owners
def test_a_file_is_read_once(file: Path, read: list[str]) -> None:
    assert [matches(file) for _ in range(3)] == [True] * 3
    assert len(read) == 1


@needs_owners
def test_afresh_reads_it_again(file: Path, read: list[str]) -> None:
    assert matches(file)
    assert matches(file, afresh=True)
    assert len(read) == 2


def test_who_writes_to_it_and_puts_its_times_back_is_found(file: Path) -> None:
    assert matches(file)
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_bytes(b"Weights")
    os.utime(file, ns=times)
    assert file.stat().st_mtime_ns == times[1]
    assert not matches(file)
    assert matches(file, sha256(b"Weights"))


def test_another_file_in_its_place_is_found(file: Path) -> None:
    assert matches(file)
    other = file.with_name("other")
    other.write_bytes(b"wEights")
    os.replace(other, file)
    assert not matches(file)


def test_another_expectation_is_compared(file: Path) -> None:
    assert matches(file)
    assert not matches(file, sha256(b"others"))


def test_what_does_not_match_is_not_remembered(file: Path, read: list[str]) -> None:
    assert not matches(file, sha256(b"others"))
    assert not matches(file, sha256(b"others"))
    assert len(read) == 2


def test_a_file_that_was_just_written_is_not_remembered(
    file: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 60.0)
    assert not checksums.compare(file, WEIGHTS).settled
    assert matches(file)
    assert len(read) == 2


def test_a_file_that_is_written_to_while_it_is_read_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(_: Any) -> str:
        file.write_bytes(b"others")
        return WEIGHTS

    monkeypatch.setattr(checksums, "_digest", digest)
    with pytest.raises(AlteredError, match="was written to while it was read"):
        checksums.compare(file, WEIGHTS)


SHARED: dict[str, Callable[[Path], Path]] = {
    "the file": lambda file: file,
    "its folder": lambda file: file.parent,
    "the cache": lambda file: file.parents[1] / "cache",
    "the folder of the program in it": lambda file: record_of(file).parent.parent,
    "the folder of records": lambda file: record_of(file).parent,
    "the record": record_of,
}


@needs_owners
@pytest.mark.parametrize("what", SHARED)
@pytest.mark.parametrize("rights", [0o022, 0o020, 0o002])
def test_nothing_is_believed_where_others_may_write(
    what: str, rights: int, file: Path, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert matches(file)
    shared = SHARED[what](file)
    if what == "the file":  # before it is compared: rights move its second time
        record_of(file).unlink()
        shared.chmod(0o644 | rights)
        assert matches(file)
    else:
        shared.chmod(shared.stat().st_mode & 0o777 | rights)
    before = len(read)
    with caplog.at_level(logging.INFO):
        assert matches(file)
    assert len(read) == before + 1
    assert f"others than this user may write to {shared}" in caplog.text


@needs_owners
@pytest.mark.skipif(getattr(os, "geteuid", int)() != 0, reason="only root gives files away")
@pytest.mark.parametrize("what", SHARED)
def test_nothing_of_another_user_is_believed(what: str, file: Path, read: list[str]) -> None:
    assert matches(file)
    if what == "the file":
        record_of(file).unlink()
    os.chown(SHARED[what](file), 12345, -1)
    before = len(read)
    assert matches(file)
    assert matches(file)
    # A record of somebody else's is replaced; what it lies in is left alone.
    assert len(read) == before + (1 if what == "the record" else 2)


@needs_owners
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_no_link_is_followed_to_a_record(depth: int, file: Path, read: list[str], tmp_path: Path) -> None:
    assert matches(file)
    linked = [record_of(file), *record_of(file).parents][depth]
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    assert matches(file)
    assert len(read) == 2


@needs_owners
@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_what_is_written_is_believed_whatever_the_umask(mask: int, file: Path, read: list[str]) -> None:
    before = os.umask(mask)
    try:
        assert matches(file)
    finally:
        os.umask(before)
    assert matches(file)
    assert len(read) == 1


def test_nothing_is_remembered_where_there_are_no_owners(
    file: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "geteuid", raising=False)  # as on Windows
    assert matches(file)
    assert matches(file)
    assert len(read) == 2


RECORDS: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_text("{"),
    "nothing": lambda path: path.write_text(""),
    "another thing": lambda path: path.write_text('{"sha256": true}'),
    "deep": lambda path: path.write_text("[" * 100_000),
    "huge": lambda path: path.write_text(path.read_text() + " " * remembered.MOST_BYTES),
    "a number of many digits": lambda path: path.write_text(f"[{'9' * 4000}]"),
    "no text": lambda path: path.write_bytes(b"\xff\x00"),
    "half a character": lambda path: path.write_text('["\\ud800"]'),
    "of another file": lambda path: path.write_text(json.dumps([*json.loads(path.read_text())[:-1], 1])),
}


@needs_owners
@pytest.mark.parametrize("record", RECORDS)
def test_a_record_that_is_none_is_written_anew(record: str, file: Path, read: list[str]) -> None:
    assert matches(file)
    RECORDS[record](record_of(file))
    assert matches(file)
    assert matches(file)
    assert len(read) == 2
    assert [path.suffix for path in record_of(file).parent.iterdir()] == [".json"]


@needs_owners
@pytest.mark.parametrize(
    "make", [lambda path: os.mkfifo(path, 0o600), lambda path: path.mkdir(0o700)], ids=["a pipe", "a folder"]
)
def test_what_is_no_record_is_left_alone_and_not_waited_for(
    make: Callable[[Path], None], file: Path, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert matches(file)
    record = record_of(file)
    record.unlink()
    make(record)
    with caplog.at_level(logging.INFO):
        assert matches(file)
    assert len(read) == 2
    assert "expected a file" in caplog.text


@needs_owners
def test_a_cache_that_cannot_be_written_costs_time_alone(
    file: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # no folder
    assert matches(file)
    assert matches(file)
    assert len(read) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for ask in (checksums.sha256, lambda path: checksums.compare(path, WEIGHTS)):
        with pytest.raises(OSError, match="Is a FIFO, where a regular file was expected"):
            ask(tmp_path / "pipe")


def test_a_held_file_is_intact_until_it_is_written_to(file: Path) -> None:
    held = HeldFile(file, WEIGHTS, checksums.compare(file, WEIGHTS))
    assert held.intact()
    os.link(file, file.with_name("link"))  # moves its second time, and nothing else
    assert held.intact()
    os.replace(_written(file.with_name("new"), b"others"), file)
    assert held.intact()  # it is not the one that has the name
    _written(file.with_name("link"), b"WEIGHTS")
    assert not held.intact()
    held.close()
    held.close()


def test_a_held_file_is_read_where_its_times_were_put_back(file: Path) -> None:
    held = HeldFile(file, WEIGHTS, checksums.compare(file, WEIGHTS))
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    _written(file, b"WEIGHTS")
    os.utime(file, ns=times)
    assert not held.intact()


def test_a_file_that_was_just_written_is_read_while_it_is_held(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes may have one time: then the times say nothing."""
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 60.0)
    held = HeldFile(file, WEIGHTS, checksums.compare(file, WEIGHTS))
    assert held.intact()
    _written(file, b"WEIGHTS")
    monkeypatch.setattr(checksums, "_state", lambda _: held._verified.state)
    assert not held.intact()


def test_a_file_that_was_replaced_before_it_is_held_is_not_intact(file: Path) -> None:
    verified = checksums.compare(file, WEIGHTS)
    os.replace(_written(file.with_name("new"), b"weights"), file)
    assert not HeldFile(file, WEIGHTS, verified).intact()


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path

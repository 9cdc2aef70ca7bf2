"""SHA-256 of files, compared once and not again until somebody writes to them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kandinsky22.bundle import checksums


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as written long ago, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", -1.0)
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, in order."""
    found: list[Path] = []
    sha256 = checksums.sha256
    monkeypatch.setattr(checksums, "sha256", lambda path: found.append(path) or sha256(path))
    return found


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_read_once(file: Path, read: list[Path]) -> None:
    assert [checksums.matches(file, digest(b"weights")) for _ in range(3)] == [True] * 3
    assert read == [file]


def test_afresh_reads_it_again(file: Path, read: list[Path]) -> None:
    assert checksums.matches(file, digest(b"weights"))
    assert checksums.matches(file, digest(b"weights"), afresh=True)
    assert read == [file, file]


def test_who_writes_to_it_and_puts_its_times_back_is_found(file: Path) -> None:
    assert checksums.matches(file, digest(b"weights"))
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_bytes(b"Weights")
    os.utime(file, ns=times)
    assert file.stat().st_mtime_ns == times[1]
    assert not checksums.matches(file, digest(b"weights"))
    assert checksums.matches(file, digest(b"Weights"))


def test_another_file_in_its_place_is_found(file: Path) -> None:
    assert checksums.matches(file, digest(b"weights"))
    other = file.with_name("other")
    other.write_bytes(b"wEights")
    os.replace(other, file)
    assert not checksums.matches(file, digest(b"weights"))


def test_another_expectation_is_compared(file: Path) -> None:
    assert checksums.matches(file, digest(b"weights"))
    assert not checksums.matches(file, digest(b"others"))


def test_what_does_not_match_is_not_remembered(file: Path, read: list[Path]) -> None:
    assert not checksums.matches(file, digest(b"others"))
    assert not checksums.matches(file, digest(b"others"))
    assert read == [file, file]


def test_a_file_that_was_just_written_is_not_remembered(
    file: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 60.0)
    assert checksums.matches(file, digest(b"weights"))
    assert checksums.matches(file, digest(b"weights"))
    assert read == [file, file]


def test_a_broken_record_and_a_folder_that_cannot_be_written_cost_time_alone(
    file: Path, read: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checksums.matches(file, digest(b"weights"))
    (record,) = (tmp_path / "cache").rglob("*.json")
    record.write_text("{")
    assert checksums.matches(file, digest(b"weights"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # no folder
    assert checksums.matches(file, digest(b"weights"))
    assert checksums.matches(file, digest(b"weights"))
    assert read == [file] * 4
    assert [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".json"]

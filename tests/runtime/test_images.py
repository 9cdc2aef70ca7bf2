"""Picture files: whole or absent, and they remember how they were made."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import kandinsky22
from kandinsky22 import InputError
from kandinsky22.images import writing

PARAMETERS: dict[str, Any] = {
    "arguments": {"prompt": 'a "red" cat\'s naïve круг 🐱\n\t\\ <b>&amp;', "negative_prompt": None, "seed": 2**63 - 1},
    "eta": 0.1,
}
SUFFIXES = tuple(writing.SUFFIXES)


@pytest.fixture
def picture() -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_parameters_come_back_from_every_format(suffix: str, picture: PIL.Image.Image, tmp_path: Path) -> None:
    path = tmp_path / f"picture{suffix}"
    writing.save(picture, path, PARAMETERS)
    assert writing.read_parameters(path) == {"kandinsky22": kandinsky22.__version__, **PARAMETERS}
    with PIL.Image.open(path) as written:
        assert written.format == writing.SUFFIXES[suffix].upper()
        assert written.size == (64, 96)


def test_a_png_has_the_very_pixels(picture: PIL.Image.Image, tmp_path: Path) -> None:
    writing.save(picture, tmp_path / "picture.PNG", PARAMETERS)
    np.testing.assert_array_equal(PIL.Image.open(tmp_path / "picture.PNG"), picture)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_quality_is_what_it_costs(suffix: str, picture: PIL.Image.Image, tmp_path: Path) -> None:
    for quality in (20, 90):
        writing.save(picture, tmp_path / f"{quality}{suffix}", PARAMETERS, quality=quality)
    small, large = ((tmp_path / f"{quality}{suffix}").stat().st_size for quality in (20, 90))
    assert small < large / 2


def test_pixels_round_as_in_diffusers() -> None:
    pixels = np.array([0.0, 0.4999 / 255, 0.5001 / 255, 254.6 / 255, 1.0], np.float32).reshape(1, 1, 5, 1)
    (picture,) = writing.to_pil(np.repeat(pixels, 3, axis=3))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 1, 255, 255]


def test_a_file_gets_the_permissions_of_any_new_file(picture: PIL.Image.Image, tmp_path: Path) -> None:
    writing.save(picture, tmp_path / "picture.png", {})
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_file_that_is_there_is_replaced_only_when_asked(picture: PIL.Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"picture\.png"):
        writing.save(picture, path, PARAMETERS)
    assert path.read_text() == "mine"
    writing.save(picture, path, PARAMETERS, overwrite=True)
    assert writing.read_parameters(path)["eta"] == 0.1
    assert os.listdir(tmp_path) == ["picture.png"]


def test_a_file_system_without_links_is_served_too(
    picture: PIL.Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    writing.save(picture, tmp_path / "picture.png", PARAMETERS)
    with pytest.raises(FileExistsError):
        writing.save(picture, tmp_path / "picture.png", PARAMETERS)
    assert os.listdir(tmp_path) == ["picture.png"]
    assert writing.read_parameters(tmp_path / "picture.png")["eta"] == 0.1


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "broken disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [None, b"an older picture"])
def test_what_fails_midway_leaves_things_as_they_were(
    failure: BaseException,
    before: bytes | None,
    picture: PIL.Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "picture.png"
    if before is not None:
        path.write_bytes(before)

    def fail(descriptor: int) -> None:
        assert len(os.listdir(tmp_path)) == (1 if before is None else 2)  # the temporary file is there now
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(failure)) as raised:
        writing.save(picture, path, PARAMETERS, overwrite=True)
    if isinstance(raised.value, OSError):
        assert (raised.value.errno, raised.value.filename) == (errno.EIO, str(path))
    assert [each.read_bytes() for each in tmp_path.iterdir()] == ([] if before is None else [before])


@pytest.mark.parametrize("name", ["picture", "picture.gif", "picture.png.bak", ".png"])
def test_another_suffix_is_refused_before_anything_is_written(
    name: str, picture: PIL.Image.Image, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"expected one of \.png, \.jpg, \.jpeg, \.webp"):
        writing.save(picture, tmp_path / name, PARAMETERS)
    assert not os.listdir(tmp_path)


def test_parameters_that_do_not_fit_are_refused_by_name(picture: PIL.Image.Image, tmp_path: Path) -> None:
    long = {"prompt": "я" * 20_000}
    for suffix in (".jpg", ".webp"):
        with pytest.raises(InputError, match=r"too long .* choose PNG"):
            writing.save(picture, tmp_path / f"picture{suffix}", long)
    writing.save(picture, tmp_path / "picture.png", long)
    assert writing.read_parameters(tmp_path / "picture.png")["prompt"] == long["prompt"]
    assert os.listdir(tmp_path) == ["picture.png"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_picture_is_refused_or_still_tells(suffix: str, picture: PIL.Image.Image, tmp_path: Path) -> None:
    path = tmp_path / f"picture{suffix}"
    writing.save(picture, path, PARAMETERS)
    whole = path.read_bytes()
    draw = random.Random(0)
    damaged = [whole[:length] for length in (0, 1, 7, 8, *range(12, len(whole), len(whole) // 60))]
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(3):
            data[draw.randrange(min(len(data), 700))] = draw.randrange(256)
        damaged.append(bytes(data))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            assert writing.read_parameters(path)["kandinsky22"]
        except InputError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("comment", [b"a nice day", b"[1, 2]", b"\xff\xfe", b"[" * 20_000, b'{"prompt": "no mark"}'])
def test_a_comment_of_another_program_is_not_taken_for_parameters(comment: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + comment
    PIL.Image.new("RGB", (8, 8)).save(path, exif=exif)
    with pytest.raises(InputError, match="does not say how it was made"):
        writing.read_parameters(path)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text(json.dumps({"kandinsky22": "0"}))
    with pytest.raises(InputError, match="it is no picture of these formats\\); expected a picture as PNG"):
        writing.read_parameters(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError):
        writing.read_parameters(tmp_path / "missing.png")
    with pytest.raises(IsADirectoryError):
        writing.read_parameters(tmp_path)

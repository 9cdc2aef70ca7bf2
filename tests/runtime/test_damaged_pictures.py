"""Files of pictures that are damaged, or none: a picture or one sentence, and never a wait."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageFile
import pytest
from PIL import GifImagePlugin
from PIL.PngImagePlugin import PngInfo

from kandinsky22 import InputError, files
from kandinsky22.images import reading, writing

from .conftest import QUICK, Cli

COLOURS = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8), "RGBA")
GREY = np.asarray(COLOURS.convert("L"))
DEEP = {
    "I;16": PIL.Image.fromarray(GREY.astype(np.uint16) * 257),
    "F": PIL.Image.fromarray(GREY.astype(np.float32) / np.float32(255)),
}
SOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("RGBA", {}),
    "palette.png": ("P", {"transparency": 3}),
    "deep.png": ("I;16", {}),
    "jpg": ("RGB", {}),
    "cmyk.jpg": ("CMYK", {}),
    "webp": ("RGBA", {}),
    "lossless.webp": ("RGBA", {"lossless": True}),
    "bmp": ("RGB", {}),
    "palette.bmp": ("P", {}),
    "gif": ("P", {"transparency": 3}),
    "tiff": ("RGB", {}),
    "lzw.tiff": ("RGBA", {"compression": "tiff_lzw"}),
    "floats.tiff": ("F", {"compression": "tiff_adobe_deflate"}),
    "jpeg.tiff": ("RGB", {"compression": "jpeg"}),
    "avif": ("RGBA", {}),
}
"""Files by their suffix: the mode of the picture in it, and how it is saved."""


def sound(suffix: str) -> bytes:
    mode, options = SOUND[suffix]
    form = PIL.Image.registered_extensions()["." + suffix.rpartition(".")[2]]
    if form == "AVIF" and not PIL.features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    picture = DEEP[mode] if mode in DEEP else COLOURS.convert("RGB").convert(mode)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned
    stream = io.BytesIO()
    picture.save(stream, form, **options, **({} if form in ("BMP", "GIF") else {"exif": exif}))
    return stream.getvalue()


def damaged(whole: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies of a file with bits turned, cut short, with runs of zeros, with numbers of another size, or mixed up."""
    draw = random.Random(seed)
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 5))):
            place = draw.randrange(len(data))
            match draw.randrange(6):
                case 0 | 1:
                    data[place] ^= 1 << draw.randrange(8)
                case 2:
                    del data[place:]
                    data += b"\0" * draw.choice((0, 0, 100))
                case 3:
                    data[place : place + draw.randrange(1, 12)] = bytes(draw.randrange(1, 12))
                case 4:
                    wrong = draw.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\1\0\0", b"\x80"))
                    data[place : place + len(wrong)] = wrong
                case _:
                    data[place:place] = data[: draw.randrange(20)]
            if not data:
                break
        yield bytes(data)


READINGS: tuple[Callable[[str, Path], object], ...] = (reading.picture, reading.mask, reading.depth)


def look(path: Path) -> int:
    """Read a file as everything that it may be; how often it was refused."""
    said = []
    for read in (*READINGS, lambda _, path: writing.read_parameters(path)):
        try:
            read("image", path)
        except InputError as error:
            said.append(str(error))
    assert not any("\n" in each for each in said), said
    return len(said)


def refusals(suffix: str, count: int, seed: int, folder: Path) -> int:
    path = folder / f"a.{suffix}"
    whole = sound(suffix)
    path.write_bytes(whole)
    assert look(path) == 1  # it does not say how it was made
    total = 0
    for data in damaged(whole, count, seed):
        path.write_bytes(data)
        begun = time.monotonic()
        total += look(path) > 1
        assert time.monotonic() - begun < 5
    return total


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse more than two million pixels: a size that was damaged is within the real limit and takes its seconds."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1 << 20)


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", SOUND)
def test_a_damaged_file_is_a_picture_or_one_sentence(suffix: str, tmp_path: Path) -> None:
    assert 0 < refusals(suffix, 40, 1, tmp_path) <= 40


@pytest.mark.slow
@pytest.mark.usefixtures("small_pictures")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", SOUND)
def test_five_thousand_damaged_files_are_pictures_or_one_sentence(suffix: str, tmp_path: Path) -> None:
    assert refusals(suffix, 5000, 2, tmp_path) > 500


@pytest.mark.parametrize(
    "error",
    [RuntimeError, TypeError, NotImplementedError, KeyError, IndexError, AttributeError, ZeroDivisionError,
     struct.error, zlib.error, OverflowError, AssertionError, RecursionError, EOFError, SyntaxError,
     UnicodeDecodeError],
)  # fmt: skip
def test_whatever_a_decoder_raises_is_one_sentence(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    COLOURS.save(tmp_path / "a.png")
    raised = UnicodeDecodeError("utf-8", b"", 0, 0, "bad") if error is UnicodeDecodeError else error("bad\nluck")

    def fail(*_: object) -> None:
        raise raised

    opened = PIL.Image.open(tmp_path / "a.png")
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", fail)
    for value, about in ((tmp_path / "a.png", f"image {tmp_path / 'a.png'}"), (opened, "image")):
        with pytest.raises(InputError) as found:
            reading.picture("image", value)
        assert str(found.value).startswith(f"{about} cannot be read (")
        assert str(found.value).endswith("; expected one picture as PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF.")
        assert "\n" not in str(found.value)
    monkeypatch.setattr(PIL.Image, "open", fail)
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        writing.read_parameters(tmp_path / "a.png")


def test_too_little_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    COLOURS.save(tmp_path / "a.png")

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", fail)
    with pytest.raises(MemoryError):
        reading.picture("image", tmp_path / "a.png")


@pytest.mark.parametrize(("name", "form"), [("a.dds", "DDS"), ("ppm", "PPM"), ("tga", "TGA"), ("pcx", "PCX")])
def test_formats_are_a_list(name: str, form: str, tmp_path: Path) -> None:
    """Also where Pillow could read the file, and whatever its name says."""
    COLOURS.convert("RGB").save(tmp_path / name, form)
    with pytest.raises(InputError, match="it is no picture of these formats"):
        reading.picture("image", tmp_path / name)
    with pytest.raises(InputError, match="it is no picture of these formats"):
        writing.read_parameters(tmp_path / name)


def test_show_reads_the_formats_that_are_written(tmp_path: Path) -> None:
    COLOURS.convert("RGB").save(tmp_path / "a.png", "TIFF")
    with pytest.raises(InputError, match="expected a picture as PNG, JPEG or WebP"):
        writing.read_parameters(tmp_path / "a.png")


def test_many_frames_are_refused_without_counting_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still = io.BytesIO()
    COLOURS.convert("P").save(still, "GIF")
    whole = still.getvalue()
    frame = whole[whole.index(b",\0\0\0\0\x08\0\x08\0") : -1]
    (tmp_path / "a.gif").write_bytes(still.getvalue()[:-1] + frame * 1000 + b";")
    monkeypatch.delattr(GifImagePlugin.GifImageFile, "n_frames")
    with pytest.raises(InputError, match="has several frames or pages"):
        reading.picture("image", tmp_path / "a.gif")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def terminal(path: Path) -> None:
    path.symlink_to("/dev/tty")


IRREGULAR: dict[str, tuple[Callable[[Path], None], str]] = {
    "fifo": (fifo, "Is a FIFO, where a regular file was expected"),
    "socket": (bound_socket, "Is a socket, where a regular file was expected"),
    "device": (device, "Is a device, where a regular file was expected"),
    "terminal": (terminal, "Is a device, where a regular file was expected"),
    "folder": (Path.mkdir, "Is a directory"),
}


@pytest.fixture(params=IRREGULAR)
def irregular(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """What has a file's name and is none, and what is said about it; whoever waits for it for ten seconds fails."""
    make, sentence = IRREGULAR[request.param]
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    make(Path("a"))
    return Path("a"), sentence


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_what_is_no_regular_file_is_one_sentence_at_once(
    irregular: tuple[Path, str], cli: Cli, shapes_bundle: Path, tmp_path: Path
) -> None:
    path, sentence = irregular
    COLOURS.save(tmp_path / "fox.png")
    generate = ("generate", shapes_bundle, "a", *QUICK, "-o", tmp_path / "out")
    begun = time.monotonic()
    commands = {
        ("show", path): f"error: {path}: {sentence}.\n",
        (*generate, "--prompts-file", path): f"error: {path}: {sentence}.\n",
        (*generate, "--image", path): f"image {path} cannot be read ({sentence}); expected one picture as PNG",
        (*generate, "--image", tmp_path / "fox.png", "--mask", path): f"{path} cannot be read ({sentence}); expected",
        (*generate, "--hint", path): f"hint {path} cannot be read ({sentence}); expected",
        (*generate, "--hint", tmp_path / "fox.png", "--depth-model", path): f"{path} is no file; expected an ONNX",
        ("mix", shapes_bundle, "--image", path, *QUICK): f"{path} cannot be read ({sentence}); expected",
        ("variations", shapes_bundle, path, *QUICK): f"{path} cannot be read ({sentence}); expected",
    }
    for command, message in commands.items():
        done = cli(*command)
        assert (done.code, done.out) == (1, "")
        assert message in done.err
        assert done.err.count("\n") == 1
    assert time.monotonic() - begun < 10
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_that_takes_a_files_place_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at it and its opening."""
    (tmp_path / "file").write_bytes(b"a")
    os.mkfifo(tmp_path / "fifo")
    regular = os.stat(tmp_path / "file")
    monkeypatch.setattr(files, "os", SimpleNamespace(**{**vars(os), "stat": lambda _: regular}))
    found: list[OSError] = []

    def read() -> None:
        try:
            files.read_regular(tmp_path / "fifo", 10)
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert [error.strerror for error in found] == ["Is a FIFO, where a regular file was expected"]


def test_files_are_read_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(1 << 20))
    assert files.read_regular(path, 1 << 20) == bytes(1 << 20)
    path.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(OSError, match="Is larger than 1 MiB, which is the most that is read"):
        files.read_regular(path, 1 << 20)
    with pytest.raises(OSError, match="Is no name that a file can have"):
        files.read_regular("a\0", 1)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system has no /proc")
def test_a_file_that_is_larger_than_it_says_is_read_up_to_the_bound() -> None:
    assert os.stat("/proc/self/maps").st_size == 0
    with pytest.raises(OSError, match="Is larger than 0 MiB"):
        files.read_regular("/proc/self/maps", 100)


def test_larger_files_are_refused_by_their_size(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    """They have holes: nothing of this size is written, and nothing read."""
    for name, size in (("a.png", (512 << 20) + 1), ("prompts.txt", (16 << 20) + 1)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(InputError, match=r"cannot be read \(Is larger than 512 MiB, which is the most that is read\)"):
        reading.picture("image", tmp_path / "a.png")
    with pytest.raises(OSError, match="Is larger than 512 MiB"):
        writing.read_parameters(tmp_path / "a.png")
    done = cli("generate", shapes_bundle, "--prompts-file", tmp_path / "prompts.txt", *QUICK)
    assert done.err == f"error: {tmp_path / 'prompts.txt'}: Is larger than 16 MiB, which is the most that is read.\n"


def test_a_million_prompts_times_many_pictures_are_refused_before_they_are_counted_out(
    cli: Cli, shapes_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"a\n" * 1_000_000)
    begun = time.monotonic()
    done = cli("generate", shapes_bundle, "--prompts-file", tmp_path / "prompts.txt", "--num-images", 4096, *QUICK)
    message = "error: These are 4096000000 pictures; one run makes 65536 at most: give fewer prompts.\n"
    assert done == (1, "", message)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("compressed", [False, True])
def test_much_text_in_a_picture_is_refused_in_a_moment(compressed: bool, cli: Cli, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("kandinsky22", '{"kandinsky22": "' + "a\x1b[0m" * 600_000 + '"}', zip=compressed)
    COLOURS.save(tmp_path / "a.png", pnginfo=info)
    begun = time.monotonic()
    done = cli("show", tmp_path / "a.png")
    assert time.monotonic() - begun < 2
    reason = (
        "a.png cannot be read (Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK)"
        if compressed
        else "a.png has more than 1 MiB of text about how it was made; it is not read."
    )
    assert (done.code, done.out) == (1, "")
    assert reason in done.err
    with pytest.raises(InputError, match="The prompt is too long to be stored in a picture"):
        writing.save(COLOURS, tmp_path / "b.png", {"prompt": "a" * (1 << 20)})

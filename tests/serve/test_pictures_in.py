"""Pictures at the door: what is taken, what is refused, and files that are made to harm."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import struct
import subprocess
import sys
import urllib.parse
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from kandinsky22 import InputError
from kandinsky22.images import reading
from kandinsky22_serve.pictures_in import CheckedPicture, check_picture, data_uri

COLOURS = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
ORIENTATION = 0x0112


def saved(form: str, picture: PIL.Image.Image = COLOURS, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def checked(body: bytes, most_bytes: int = 1 << 20, most_pixels: int = 1 << 20) -> CheckedPicture:
    return check_picture(body, most_bytes=most_bytes, most_pixels=most_pixels)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, size: tuple[int, int] = (8, 8), after: bytes = b"") -> bytes:
    """A grey PNG with further chunks before its pixels and after them. Of more than 8 x 8 it has no pixels."""
    pixels = chunk(b"IDAT", zlib.compress(bytes(9 * 8)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + after + chunk(b"IEND")


def exif(*entries: tuple[int, int, int, int], rest: bytes = b"", order: str = "<") -> bytes:
    """EXIF with one directory of (tag, type, count, value or offset), and what comes behind it."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + b"".join(struct.pack(f"{order}HHII", *each) for each in entries) + bytes(4) + rest


def jpeg_with(*segments: bytes) -> bytes:
    """A JPEG without a JFIF header, so that Pillow looks for its resolution in EXIF, with further segments."""
    whole = saved("JPEG")
    return whole[:2] + b"".join(segments) + whole[whole.index(b"\xff\xdb") :]


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


TAKEN = {
    "png": ("PNG", saved("PNG")),
    "16 bits": ("PNG", saved("PNG", PIL.Image.fromarray(np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)))),
    "palette": ("PNG", saved("PNG", COLOURS.convert("P"))),
    "transparent": ("PNG", saved("PNG", COLOURS.convert("RGBA"))),
    "jpeg": ("JPEG", saved("JPEG")),
    "progressive": ("JPEG", saved("JPEG", progressive=True)),
    "CMYK": ("JPEG", saved("JPEG", COLOURS.convert("CMYK"))),
    "with previews": ("JPEG", saved("MPO", save_all=True, append_images=[COLOURS.resize((6, 4))])),
    "webp": ("WEBP", saved("WEBP")),
    "lossless webp": ("WEBP", saved("WEBP", lossless=True)),
    "webp with metadata": ("WEBP", saved("WEBP", exif=b"Exif\0\0" + exif((ORIENTATION, 3, 1, 1)))),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_png_jpeg_and_webp_are_taken_with_their_size(kind: str) -> None:
    form, body = TAKEN[kind]
    assert checked(body) == CheckedPicture(form, 48, 32)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "AVIF", "ICO", "PPM", "TGA"])
def test_other_formats_are_refused(form: str) -> None:
    try:
        body = saved(form)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {form}")
    with pytest.raises(InputError, match="expected one picture as PNG, JPEG or WebP"):
        checked(body)


@pytest.mark.parametrize(
    "body", [b"", b"GIF89a", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8X"]
)
def test_what_is_no_picture_is_refused(body: bytes) -> None:
    with pytest.raises(InputError, match=r"^image cannot be read"):
        checked(body)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animations_are_refused(form: str) -> None:
    frames = [COLOURS.rotate(angle) for angle in (90, 180)]
    with pytest.raises(InputError, match="image is animated"):
        checked(saved(form, save_all=True, append_images=frames))


@pytest.mark.parametrize("kind", [kind for kind in TAKEN if kind != "with previews"])
def test_a_file_that_was_cut_off_is_refused_at_the_door(kind: str) -> None:
    _, body = TAKEN[kind]
    with pytest.raises(InputError, match="cannot be read"):
        checked(body[: len(body) * 2 // 3])


def test_bytes_and_pixels_have_limits_that_are_kept_exactly() -> None:
    for _, body in TAKEN.values():
        assert checked(body, len(body), 48 * 32).width == 48
        with pytest.raises(InputError, match=f"has {len(body)} bytes; expected {len(body) - 1} at most"):
            checked(body, len(body) - 1)
        with pytest.raises(InputError, match=f"too many pixels; expected {48 * 32 - 1} at most"):
            checked(body, len(body), 48 * 32 - 1)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_turned_picture_has_its_size_the_right_way_up_as_the_runtime_reads_it(form: str, tmp_path: Path) -> None:
    turned = PIL.Image.Exif()
    turned[ORIENTATION] = 6
    body = saved(form, exif=turned)
    assert checked(body) == CheckedPicture(form, 32, 48)
    (tmp_path / "turned").write_bytes(body)
    assert reading.picture("image", tmp_path / "turned").size == (32, 48)


def test_a_picture_is_taken_where_the_runtime_reads_it_however_it_is_damaged(tmp_path: Path) -> None:
    """Files with bytes changed: the door says yes or InputError, and after a yes the runtime reads the same size."""
    chance, file, taken = random.Random(0), tmp_path / "picture", 0
    bodies = [*(body for _, body in TAKEN.values()), png(chunk(b"eXIf", exif((ORIENTATION, 3, 1, 6), (271, 2, 9, 40))))]
    for body in bodies * 20:
        changed = bytearray(body)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(min(len(body), 200) if chance.random() < 0.7 else len(body))] = chance.randrange(
                256
            )
        try:
            found = checked(bytes(changed))
        except InputError:
            continue
        file.write_bytes(changed)
        assert reading.picture("image", file).size == (found.width, found.height)
        taken += 1
    assert taken


def test_metadata_as_cameras_and_programs_write_it_is_taken() -> None:
    sub = exif((0x9003, 2, 20, 100), rest=bytes(200))[8:]
    whole = exif((271, 2, 30, 60), (ORIENTATION, 3, 1, 6), (0x8769, 4, 1, 50), rest=sub)
    assert checked(png(chunk(b"eXIf", whole), chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(3000))))).format == "PNG"
    assert checked(jpeg_with(segment(0xE1, b"Exif\0\0" + whole))).width == 32
    assert checked(jpeg_with(*[segment(0xE2, b"ICC_PROFILE\0" + bytes(60000))] * 8, b"\xff" * 10)).width == 48
    assert checked(png(*[chunk(b"tEXt", b"k%d\0text" % i) for i in range(500)])).format == "PNG"


def bombs() -> dict[str, bytes]:
    """Files whose reading costs far more than their size: made longer, within a limit of bytes, they take minutes."""
    progressive = saved("JPEG", PIL.Image.new("RGB", (2048, 2048), "navy"), progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    megabyte = zlib.compress(bytes(1 << 20), 1)
    on_itself = [(0x1000 + i, 7, 60_000, 8) for i in range(4500)]
    deep = exif(*[(0x1000 + i, 7, 200_000, 8) for i in range(2000)], rest=bytes(200_000))
    below = exif((ORIENTATION, 3, 1, 6), (0x8769, 4, 1, 38), rest=exif(*on_itself, rest=bytes(60_000))[8:])
    lossless = bytearray(saved("WEBP", lossless=True))
    lossless[21:25] = (0x3FFF | 0x3FFF << 14).to_bytes(4, "little")
    canvas = bytearray(TAKEN["webp with metadata"][1])
    canvas[24:30] = (16382).to_bytes(3, "little") * 2
    hexadecimal = b"\n\n%d\n" % len(deep) + deep.hex().encode()
    return {
        "pixels": png(size=(50_000, 50_000)),
        "pixels just below Pillow's limit": png(size=(12_000, 12_000)),
        "pixels of WebP": bytes(lossless),
        "pixels of a canvas of WebP": bytes(canvas),
        "pixels of JPEG": saved("JPEG").replace(struct.pack(">HH", 32, 48), b"\xff\xff\xff\xff", 1),
        "scans": progressive[:-2] + scan * 5000 + progressive[-2:],
        "profile": png(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(20 << 20), 1))),
        "profiles": png(chunk(b"iCCP", b"x\0\0" + megabyte) * 200),
        "text": png(chunk(b"zTXt", b"x\0\0" + megabyte) * 200),
        "text behind": png(after=chunk(b"iTXt", b"x\0\1\0\0\0" + megabyte) * 200),
        "empty chunks": png(chunk(b"prVt") * 50_000),
        "empty chunks behind": png(after=chunk(b"prVt") * 50_000),
        "empty pixels": png(chunk(b"IDAT") * 50_000),
        "fill": jpeg_with(b"\xff" * 500_000),
        "fill between": jpeg_with(segment(0xFE, b""), b"\1" * 500_000),
        "escaped fill": jpeg_with(b"\xff\0" * 250_000),
        "empty segments": jpeg_with(segment(0xE1, b"") * 100_000),
        "restarts": jpeg_with(b"\xff\xd0" * 250_000),
        "EXIF of PNG": png(chunk(b"eXIf", deep)),
        "EXIF of PNG behind": png(after=chunk(b"eXIf", deep)),
        "EXIF in text": png(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexadecimal))),
        "EXIF called exif": png(after=chunk(b"tEXt", b"exif\0" + deep)),
        "EXIF of JPEG": jpeg_with(segment(0xE1, b"Exif\0\0" + exif(*on_itself, rest=bytes(6_000)))),
        "EXIF of JPEG in parts": jpeg_with(
            *[segment(0xE1, b"Exif\0\0" + deep[at : at + 60_000]) for at in range(0, len(deep), 60_000)]
        ),
        "EXIF of WebP": saved("WEBP", exif=b"Exif\0\0" + deep),
        "EXIF below": png(chunk(b"eXIf", below)),
        "EXIF below, on a Mac": png(
            chunk(b"eXIf", exif((ORIENTATION, 3, 1, 6 << 16), (0x8769, 3, 1, 38 << 16), order=">", rest=bytes(99)))
        ),
        "previews": jpeg_with(segment(0xE2, b"MPF\0" + exif(*on_itself, rest=bytes(6_000)))),
        "megabytes of EXIF": png(chunk(b"eXIf", exif((0x1000, 3, 150_000, 26), rest=bytes(300_000)))),
    }


READS_BOMBS = """
import json, resource, sys
from pathlib import Path
from kandinsky22 import InputError
from kandinsky22_serve.pictures_in import check_picture

check_picture(Path(sys.argv[1], "sound").read_bytes(), most_bytes=1 << 24, most_pixels=1 << 23)
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (200 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
answers = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        answer = str(check_picture(path.read_bytes(), most_bytes=1 << 24, most_pixels=1 << 23))
    except InputError as error:
        answer = str(error)
    except MemoryError:
        answer = "MemoryError"
    answers[path.name] = answer
print(json.dumps(answers))
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs Linux, where a process's memory can be limited"
)
def test_files_made_to_harm_are_refused_within_bounds_of_time_and_memory(tmp_path: Path) -> None:
    """In a process with 200 MiB and a minute to spare."""
    files = bombs() | {"sound": TAKEN["png"][1]}
    for name, body in files.items():
        assert len(body) < 1 << 20, name
        (tmp_path / name).write_bytes(body)
    command = [sys.executable, "-c", READS_BOMBS, str(tmp_path)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers.pop("sound").startswith("CheckedPicture")
    assert answers.keys() == files.keys() - {"sound"}
    assert {name: answer for name, answer in answers.items() if not answer.startswith("image ")} == {}
    large = {name for name, answer in answers.items() if "has too many pixels" in answer}
    assert large == {name for name in answers if name.startswith("pixels")}


URIS = [
    "data:image/png;base64,iVBORw0KGgo=",
    "DATA:IMAGE/PNG;base64,iVBORw0KGgo=",
    "data:image/png;base64,iVBORw0KGgo%3D",
    "data:;base64,+/+/",
    "data:image/png;name=a%20b.png;base64,AAAA",
    "data:application/octet-stream;base64,",
    "data:,abc",
    "data:text/plain;charset=utf-8,a%20b%2Cc,d%FF",
    "data:image/svg+xml,%3Csvg/%3E",
    "data:,",
]


@pytest.mark.parametrize("text", URIS)
def test_a_data_uri_gives_the_bytes_that_pythons_own_reader_gives(text: str) -> None:
    with urllib.request.urlopen(text) as answer:
        assert data_uri(text, 100) == answer.read()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data:",
        "data:image/png;base64",
        "image/png;base64,AAAA",
        "https://example.org/a.png",
        " data:,a",
        "data:image/png;base64,AAAA\n",
        "data:image/png;base64,AA AA",
        "data:image/png;base64,AAA",
        "data:image/png;base64,AAA=AAAA",
        "data:image/png;base64,A===",
        "data:image/png;base64,__--",
        "data:image/png;base64,AAAA#x",
        "data:image/png;base64;x=y,AAAA=",
        "data:image/png;base32,AAAA=",
        "data:image,AAAA",
        "data:image/png;x,AAAA",
        "data:im age/png,AAAA",
        "data:,é",
        "data:,%",
        "data:,%4",
        "data:,%zz",
        "data:,a b",
        "data:;x=" + "y" * 1000 + ",a",
    ],
)
def test_what_is_not_exactly_a_data_uri_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^image is (no data URI|a data URI whose base64 is damaged)"):
        data_uri(text, 100_000)


def test_a_data_uri_has_at_most_as_many_bytes_as_are_allowed() -> None:
    for size in range(20):
        body = bytes(range(200, 200 + size))
        encoded = base64.b64encode(body).decode()
        escaped = "".join(f"%{ord(each):02x}" for each in encoded)
        for text in (f",{''.join(f'%{each:02X}' for each in body)}", f";base64,{encoded}", f";base64,{escaped}"):
            assert data_uri("data:" + text, size) == body
            if size:
                with pytest.raises(InputError, match=f"more than {size - 1} bytes"):
                    data_uri("data:" + text, size - 1)


def test_a_data_uri_that_is_far_too_long_is_not_even_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> bytes:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(urllib.parse, "unquote_to_bytes", decoded)
    with pytest.raises(InputError, match="more than 1000 bytes"):
        data_uri("data:image/png;base64," + "A" * 10_000, 1000)

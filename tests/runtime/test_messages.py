"""Messages of the library repeat names and text of others: each is one line, and nothing in it acts on a terminal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from kandinsky22 import Pipeline
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.cli.printable import printable
from kandinsky22.errors import Cancelled, InputError, KandinskyError
from kandinsky22.images import reading, writing
from kandinsky22.measure.report import Measurements
from kandinsky22.measure.suite import ReportRecord
from kandinsky22.request.request import Request
from kandinsky22_serve.outside import OutsideError

from .test_printable import NASTY, acts

ENDS_OF_LINES = [each for each in map(chr, range(0x110000)) if len(f"a{each}b".splitlines()) > 1]
NAME = NASTY.replace("\0", "").replace("/", "")[:80]


def test_the_errors_of_the_server_are_of_the_same_kind() -> None:
    assert OutsideError in heirs(KandinskyError)


def heirs(kind: type[KandinskyError]) -> list[type[KandinskyError]]:
    """A class of our errors and all that are made of it."""
    return [kind, *(each for heir in kind.__subclasses__() for each in heirs(heir))]


def test_python_and_we_agree_on_what_ends_a_line() -> None:
    assert set("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029") == set(ENDS_OF_LINES)
    assert len(printable("a".join(ENDS_OF_LINES)).splitlines()) == 1


@pytest.mark.parametrize("kind", heirs(KandinskyError), ids=lambda kind: kind.__name__)
def test_the_message_of_every_error_has_one_line_that_does_nothing(kind: type[KandinskyError]) -> None:
    error = kind(f"круг {NASTY}{''.join(ENDS_OF_LINES)} is not there.")
    assert str(error).startswith(r"круг \x00\x01")
    assert len(str(error).splitlines()) == 1
    assert not acts(str(error))
    str(error).encode()  # half a character, which no file and no terminal takes, is an escape as well
    assert str(copy.copy(error)) == str(error)
    assert str(kind("Ordinary text, 円 and é, stays as it is.")) == "Ordinary text, 円 and é, stays as it is."


def damaged(folder: Path) -> Path:
    path = folder / f"{NAME}.png"
    path.write_bytes(b"no picture")
    return path


def animated(folder: Path) -> Path:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / f"{NAME}.gif", save_all=True, append_images=frames[1:])
    return folder / f"{NAME}.gif"


WRONG: dict[str, Callable[[Path], object]] = {
    "a bundle that is missing": lambda folder: Bundle(folder / NAME).manifest,
    "a bundle that is a file": lambda folder: Pipeline.load(damaged(folder)),
    "a picture that is missing": lambda folder: reading.picture("image", folder / NAME),
    "a mask below a file": lambda folder: reading.mask("mask_image", damaged(folder) / "mask.png"),
    "a depth map that is damaged": lambda folder: reading.depth("hint", damaged(folder)),
    "a picture of several frames": lambda folder: reading.picture("image", animated(folder)),
    "a picture on the web": lambda folder: reading.picture("image", f"https://a/{NAME}"),
    "a picture of no format": lambda folder: writing.format_of(folder / NAME),
    "a picture that tells nothing": lambda folder: writing.read_parameters(damaged(folder)),
    "a report that is damaged": lambda folder: Measurements(damaged(folder), {}, {}, ReportRecord, {}),
    "a task": lambda folder: Request.of(NAME),
    "a parameter": lambda folder: Request.of("text2img", **{NAME: 1}),
    "a value": lambda folder: Request.of("text2img", prompt="a", output_type=NAME),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_name_of_any_characters_is_told_on_one_line(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(KandinskyError) as raised:
        WRONG[wrong](tmp_path)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert not acts(message)
    assert r"\x01\x02" in message


@pytest.mark.parametrize("character", ENDS_OF_LINES, ids=ascii)
def test_a_picture_that_is_missing_is_one_sentence(character: str, handmade_bundle: Bundle) -> None:
    request = Request.of("img2img", prompt="a", image=f"a{character}b.png")
    with pytest.raises(InputError) as raised:
        Pipeline.load(handmade_bundle.path).resolve(request)
    escape = character.encode("unicode_escape").decode()
    assert str(raised.value) == f"image: there is no file a{escape}b.png."


def test_what_a_callback_says_when_it_ends_a_call_is_one_line() -> None:
    assert str(Cancelled("stop\nnow")) == r"stop\nnow"

"""Contact sheets: pairs of pictures below each other, with what differs and what was measured, to be looked at."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

CELL = 512
"""Pixels that a picture's longer side has at most; larger ones are made smaller."""
ROWS = 8
"""Pairs on a sheet."""
TIMES = 8
"""What a difference is multiplied by, to be seen: 32/255 and more is white."""
MARGIN = 12
"""Pixels between pictures, and at the edges."""
NARROWEST = 640
"""Pixels: where pictures are small, a sheet is wide enough for its text."""
LINE, LETTERS = 18, 14
"""Pixels of a line of text, and of its letters."""
FONTS = ("DejaVuSans.ttf", "Arial.ttf")
"""Looked for where the system keeps fonts: Pillow's own has letters of ASCII alone."""
LONGEST = 400
"""Characters of a line that are looked at: no more fit in, and measuring them takes time."""

_BACKGROUND, _INK = "white", "black"
_Font = PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Row:
    """Two RGB pictures of one size, and the lines of text below them, of which one that is too long is cut off."""

    first: PIL.Image.Image
    second: PIL.Image.Image
    lines: Sequence[str]


def sheets(rows: Iterable[Row], heading: Sequence[str]) -> Iterator[PIL.Image.Image]:
    """RGB sheets of up to `ROWS` pairs: first, second, difference. Each has the lines of `heading` at its top."""
    left = iter(rows)
    while part := [_drawn(row) for row in itertools.islice(left, ROWS)]:
        parts = [_text(heading, max(part[0].width, NARROWEST - 2 * MARGIN)), *part]
        yield _stacked(parts)


def difference(first: PIL.Image.Image, second: PIL.Image.Image) -> PIL.Image.Image:
    """What two RGB pictures of one size differ by: `TIMES` the distance of each channel, at most 255."""
    x, y = (np.asarray(each, np.int16) for each in (first, second))
    return PIL.Image.fromarray(np.minimum(TIMES * np.abs(x - y), 255).astype(np.uint8))


def _drawn(row: Row) -> PIL.Image.Image:
    """A pair with what it differs by, side by side, above its text."""
    cells = [_fitted(each) for each in (row.first, row.second, difference(row.first, row.second))]
    width = max(3 * cells[0].width + 2 * MARGIN, NARROWEST - 2 * MARGIN)
    drawn = PIL.Image.new("RGB", (width, cells[0].height), _BACKGROUND)
    for column, cell in enumerate(cells):
        drawn.paste(cell, (column * (cell.width + MARGIN), 0))
    return _below_each_other([drawn, _text(row.lines, width)], 0)


def _stacked(parts: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """Parts below each other, with margins around them."""
    inner = _below_each_other(parts, MARGIN)
    sheet = PIL.Image.new("RGB", (inner.width + 2 * MARGIN, inner.height + 2 * MARGIN), _BACKGROUND)
    sheet.paste(inner, (MARGIN, MARGIN))
    return sheet


def _below_each_other(parts: Sequence[PIL.Image.Image], gap: int) -> PIL.Image.Image:
    height = sum(part.height + gap for part in parts) - gap
    joined = PIL.Image.new("RGB", (max(part.width for part in parts), height), _BACKGROUND)
    top = 0
    for part in parts:
        joined.paste(part, (0, top))
        top += part.height + gap
    return joined


def _fitted(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture as it is, or made smaller, so that its longer side has `CELL` pixels."""
    if max(picture.size) <= CELL:
        return picture
    width, height = (max(round(side * CELL / max(picture.size)), 1) for side in picture.size)
    return picture.resize((width, height), PIL.Image.Resampling.LANCZOS)


def _text(lines: Sequence[str], width: int) -> PIL.Image.Image:
    """Lines of text on a strip of their own, where nothing reaches beyond its edges."""
    strip = PIL.Image.new("RGB", (width, LINE * len(lines)), _BACKGROUND)
    draw, (font, beyond_ascii) = PIL.ImageDraw.Draw(strip), _font()
    for place, line in enumerate(lines):
        letters = line[:LONGEST] if beyond_ascii else line[:LONGEST].encode("ascii", "replace").decode()
        draw.text((0, place * LINE), _cut(letters, len(line), width, font), fill=_INK, font=font)
    return strip


def _cut(letters: str, length: int, width: int, font: _Font) -> str:
    """The beginning of a line of so many characters that is not wider than `width` pixels."""
    if len(letters) == length and font.getlength(letters) <= width:
        return letters
    cut = len(letters)
    while cut and font.getlength(letters[:cut] + "...") > width:
        cut -= 1
    return letters[:cut] + "..."


@functools.cache
def _font() -> tuple[_Font, bool]:
    """A font, and whether it has more letters than those of ASCII."""
    for name in FONTS:
        with contextlib.suppress(OSError, ImportError):  # not here, or Pillow was built without FreeType
            return PIL.ImageFont.truetype(name, LETTERS), True
    return PIL.ImageFont.load_default(), False

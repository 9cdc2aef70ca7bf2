"""Contact sheets: pictures with their prompts below."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from scores.painters import SIDE

GAP, TEXT_HEIGHT = 8, 56
LETTERS = 25
"""Letters in a line of text as wide as a picture."""


def contact_sheet(
    tiles: Sequence[Sequence[Image.Image]], prompts: Sequence[str], columns: int, rows: int, path: Path
) -> None:
    """Some of the tiles, evenly chosen, each of a few pictures side by side and its prompt below."""
    wide = len(tiles[0])
    width = wide * SIDE + GAP
    sheet = Image.new("RGB", (columns * width, rows * (SIDE + TEXT_HEIGHT)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, index in enumerate(np.linspace(0, len(tiles) - 1, columns * rows).astype(int)):
        x, y = place % columns * width + GAP // 2, place // columns * (SIDE + TEXT_HEIGHT)
        for offset, picture in enumerate(tiles[index]):
            sheet.paste(picture, (x + offset * SIDE, y))
        pen.multiline_text((x, y + SIDE + 2), "\n".join(_wrap(prompts[index], wide * LETTERS)), "black", font_size=10)
    # 256 colours are enough to look at, and a third of the bytes.
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _wrap(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + len(word) >= width:
            yield line
            line = ""
        line = f"{line} {word}".strip()
    yield line

"""Tables for terminals."""

from __future__ import annotations

from collections.abc import Sequence

from kandinsky22.cli.printable import printable


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, a line each, their cells in columns."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in shown)
    return "\n".join(line.rstrip() for line in lines)

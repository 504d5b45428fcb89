"""Rows of text in columns."""

import shutil
import sys
from collections.abc import Iterable

_LEAST = 8
"""Characters that are left of a column that is cut."""


def table(rows: Iterable[tuple[str, ...]], width: int | None = None) -> str:
    """Return rows as lines, each column as wide as its widest cell.

    Args:
        rows: the cells.
        width: how long a line may be, for which the last column is cut; ``None`` for any length.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        room = max(_LEAST, width - sum(widths[:-1]) - 2 * len(widths[:-1]))
        rows = [(*row[:-1], _cut(row[-1], room)) for row in rows]
        widths[-1] = min(widths[-1], room)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def line_width() -> int | None:
    """Return how many characters a line on standard output may have; ``None`` where it is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"

"""Rows of text in columns."""

from collections.abc import Iterable


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows as lines, each column as wide as its widest cell."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )

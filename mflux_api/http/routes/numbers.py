"""Whole numbers in addresses."""

MAX_DIGITS = 9


def number(text: str) -> int | None:
    """Return the number in a text; ``None`` where there is none, or a larger one than any that means something."""
    # Measured first: int() itself refuses thousands of digits, with an error of its own.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None

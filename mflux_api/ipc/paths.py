"""Paths in frames: a frame's texts are UTF-8, and the name of a file need not be."""

import os
from pathlib import Path

_AS_BYTES = "bytes:"


def path_text(path: Path) -> str:
    """Return a path as a text that every frame can hold; of most it is the path itself."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        # No path begins like this where it matters: those that cross a pipe are absolute.
        return _AS_BYTES + os.fsencode(path).hex()
    return text


def path_of(text: str) -> Path:
    """Return the path that :func:`path_text` made this text of.

    Raises:
        ValueError: it is not one of its texts.
    """
    return Path(os.fsdecode(bytes.fromhex(text.removeprefix(_AS_BYTES))) if text.startswith(_AS_BYTES) else text)

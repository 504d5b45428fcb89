"""Output on terminals and in files that are not UTF-8: what cannot be shown is shown otherwise, and breaks nothing."""

import codecs
import os
import sys

ERRORS = "mflux-api"
"""The name of the rule for characters that an encoding does not have."""

_PLAIN = {"✓": "+", "✗": "x", "█": "#", "·": ".", "…": "...", "→": "->", "–": "-", "×": "x"}
"""The signs of our own output, where they cannot be shown."""


def show_everything() -> None:
    """Have standard output and standard error show each character in whatever encoding they have."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ERRORS)


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    shown = b""
    for character in error.object[error.start : error.end]:
        if "\udc80" <= character <= "\udcff":
            # A byte of a file's name that is not UTF-8: who reads a path wants this very byte.
            shown += bytes([ord(character) - 0xDC00])
        else:
            shown += _PLAIN.get(character, "").encode() or character.encode("ascii", "backslashreplace")
    return shown, error.end


codecs.register_error(ERRORS, _replace)


def print_path(path: str) -> None:
    """Write a path as a line of standard output with the bytes that the file system has: a program may read it."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.buffer.flush()


def decode_argument(text: str) -> str:
    """Return an argument that was typed in UTF-8 where the locale cannot read it; any other as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text).decode("utf-8", "replace")
    return text

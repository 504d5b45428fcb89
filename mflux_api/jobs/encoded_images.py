"""Images in a JSON body, as base64: a large body holds little else, and a long text is read in slices.

The decoder holds the interpreter for as long as one call takes. So that is bounded before: by what a body may hold, and
by how much of a text is decoded at a time.
"""

import itertools
import re
from collections.abc import Iterator
from functools import partial
from typing import Final

import msgspec

from mflux_api.errors import BodyTooLarge
from mflux_api.system.long_texts import join_between_threads

MAX_STRUCTURE_BYTES: Final = 512 * 1024
"""Bytes of a body that are neither base64 nor blanks or escapes."""
MAX_BREAK_BYTES: Final = 2 * 2**20
"""Blanks and escapes of a body. An escaped line break after each 64 letters of 64 MB makes 1.9 million."""
LONG_TEXT_BYTES: Final = 2**20
"""Longer texts are read in slices."""
SLICE_BYTES: Final = 256 * 1024

_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-"
_BREAKS: Final = b" \r\n\t\\%"
_PLAIN: Final = re.compile(rb"[ !#-\[\]-~]{12}")
"""What comes behind so many letters is not a part of an escape, nor the second of a surrogate pair."""
_SEARCHED_BYTES: Final = 4096


class NotASCII(Exception):
    """A long text is not base64 or a data URL; a character beyond ASCII would make it four times as large in memory."""


def check_density(data: bytes | bytearray | memoryview) -> None:
    """Refuse what is large and not base64, slice by slice: each value costs the decoder up to 100 ns in one call.

    Raises:
        BodyTooLarge: there is too much of it.
    """
    if len(data) <= MAX_STRUCTURE_BYTES:
        return
    view, breaks, structure = memoryview(data), 0, 0
    for start in range(0, len(view), SLICE_BYTES):
        other = bytes(view[start : start + SLICE_BYTES]).translate(None, _BASE64)
        inner = len(other.translate(None, _BREAKS))
        structure += inner
        breaks += len(other) - inner
        if structure > MAX_STRUCTURE_BYTES or breaks > MAX_BREAK_BYTES:
            kilobytes, megabytes = MAX_STRUCTURE_BYTES // 1024, MAX_BREAK_BYTES // 2**20
            raise BodyTooLarge(
                f"More than {kilobytes} KB of the body are not base64, or {megabytes} MB of it are blanks and escapes; "
                "send images as base64, and leave out what is not needed",
                {"limit_bytes": MAX_STRUCTURE_BYTES},
            )


def read_long_text(inner: memoryview) -> str:
    """Return the text between two quotes of JSON. Call it in a thread.

    Raises:
        NotASCII: it has other characters.
        DecodeError: it has an escape that is none.
    """
    cuts = [0, *_cuts(inner), len(inner)]
    try:
        return join_between_threads([partial(_read_slice, inner[a:b]) for a, b in itertools.pairwise(cuts)])
    except UnicodeError:
        raise NotASCII from None


def _read_slice(inner: memoryview) -> str:
    text = str(inner, "ascii")
    if "\\" in text:
        text = msgspec.json.decode(f'"{text}"', type=str)
        text.encode("ascii")
    return text


def _cuts(inner: memoryview) -> Iterator[int]:
    """Where to cut a text so that no escape is cut."""
    start = SLICE_BYTES
    while start < len(inner):
        found = _PLAIN.search(inner, start, start + _SEARCHED_BYTES)
        if found is not None:
            yield found.end()
        start += SLICE_BYTES if found is not None else _SEARCHED_BYTES

"""Files as text, as clients send them: base64 or a data URL to bytes, and back, in slices.

Python's base64 holds the interpreter: 64 MB in one piece would hold up every other request for a third of a second.
"""

import re
from binascii import Error, a2b_base64, b2a_base64
from functools import partial
from urllib.parse import unquote, unquote_to_bytes

import attrs

from mflux_api.system.long_texts import join_between_threads

SLICE = 1 << 20
_BYTES_SLICE = 3 * (SLICE // 4)
_DATA = "data:"
_MOST_HEAD = 1200
"""Letters before the comma of a data URL: its type and parameters, such as a file's name."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}:")
_URL_SAFE = str.maketrans("-_", "+/")
_LEAST_SAVED = 4096


class NotAFile(Exception):
    """The text is neither; the message completes a sentence that begins with what it is in."""


def decode_text(text: str) -> bytes:
    """Return the file that is in base64 or a data URL. Call it in a thread.

    Raises:
        NotAFile: it is neither.
    """
    start = _after_blanks(text)
    head = _data_url(text, start)
    if head is None and (scheme := _URL.match(text, start)) is not None:
        is_data = scheme.group().lower() == _DATA
        raise NotAFile("is a data URL without data" if is_data else "is a URL; send the image itself")
    if head is not None and not head.base64:
        data = _decode_percent(text, head.end)
    else:
        data = _decode_slices(text, start if head is None else head.end, percent=head is not None)
    if not data:
        raise NotAFile("is empty")
    return bytes(data)


def encode_text(data: bytes) -> str:
    """Return a file as base64. Call it in a thread."""
    view = memoryview(data)
    starts = range(0, len(data), _BYTES_SLICE)
    return join_between_threads([partial(_encode_slice, view[start : start + _BYTES_SLICE]) for start in starts])


def compact_text(text: str, data: bytes) -> str | None:
    """Return base64 of the file alone where a text is much longer, because of blanks for instance; else ``None``."""
    return None if len(text) - 2 * len(data) < _LEAST_SAVED else encode_text(data)


def _encode_slice(data: memoryview) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


@attrs.frozen
class _Head:
    """What stands before the data of a data URL."""

    end: int
    base64: bool


def _data_url(text: str, start: int) -> _Head | None:
    """Return the head of a data URL; ``None`` where there is none. As browsers do, blanks around a part are taken."""
    if text[start : start + len(_DATA)].lower() != _DATA:
        return None
    quoted, parts, begin = False, list[str](), start + len(_DATA)
    for at in range(begin, min(len(text), start + _MOST_HEAD)):
        if text[at] == '"':
            # A name in quotes may have a comma.
            quoted = not quoted
        elif text[at] in ",;" and not quoted:
            parts.append(text[begin:at].strip().lower())
            begin = at + 1
            if text[at] == ",":
                return _Head(begin, "base64" in parts[1:])
    return None


def _after_blanks(text: str) -> int:
    for start in range(0, len(text), SLICE):
        piece = text[start : start + SLICE]
        if rest := piece.lstrip():
            return start + len(piece) - len(rest)
    return len(text)


def _decode_percent(text: str, start: int) -> bytearray:
    """Return the data of a data URL that is not in base64: text, with an escape for each byte that is none."""
    if text.find("%", start) < 0:
        # No image is text: it is base64, most likely, and does not say so.
        raise NotAFile("is a data URL without base64; write 'data:image/png;base64,' before base64")
    data, escape = bytearray(), ""
    for at in range(start, len(text), SLICE):
        piece = escape + text[at : at + SLICE]
        cut = piece.find("%", len(piece) - 2) if at + SLICE < len(text) else -1
        piece, escape = (piece, "") if cut < 0 else (piece[:cut], piece[cut:])
        data += unquote_to_bytes(piece)
    return data


def _decode_slices(text: str, start: int, *, percent: bool) -> bytearray:
    data, rest, escape, padded = bytearray(), "", "", False
    try:
        for at in range(start, len(text), SLICE):
            piece = escape + "".join(text[at : at + SLICE].split())
            escape = ""
            if percent and "%" in piece:
                # An escape that the slice cuts waits for its end.
                cut = piece.find("%", len(piece) - 2) if at + SLICE < len(text) else -1
                piece, escape = (piece, "") if cut < 0 else (piece[:cut], piece[cut:])
                piece = unquote(piece)
            more = piece.rstrip("=")
            if "=" in more or (padded and more):
                raise NotAFile("is not base64")
            padded = padded or len(more) < len(piece)
            digits = rest + more
            whole = len(digits) - len(digits) % 4
            data += a2b_base64(digits[:whole].translate(_URL_SAFE), strict_mode=True)
            rest = digits[whole:]
        if rest:
            data += a2b_base64(rest.translate(_URL_SAFE) + "=" * (-len(rest) % 4), strict_mode=True)
    except (Error, ValueError):
        raise NotAFile("is not base64") from None
    return data

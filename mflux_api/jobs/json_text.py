"""A JSON body as the decoder takes it: in UTF-8, without halves of characters; and what is wrong where it is not JSON.

Large bodies are gone through in slices, or by searches that take milliseconds: call it in a thread for those.
"""

import codecs
import re
from typing import Final

from mflux_api.errors import InvalidJSON

Body = bytes | bytearray | memoryview

SLICE_BYTES: Final = 256 * 1024
MOST_TEXT_BYTES: Final = 2**20
"""What a body in UTF-16 or UTF-32 may become longer than it was: images in it become shorter."""
MOST_SURROGATES: Final = 20_000

REPLACED: Final = rb"\uFfFd"
"""What stands for half a character: the replacement character, spelled as no encoder spells it."""

_REPLACED: Final = re.compile(re.escape(REPLACED))

_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF32_LE, "UTF-32-LE"),
    (codecs.BOM_UTF32_BE, "UTF-32-BE"),
    (codecs.BOM_UTF16_LE, "UTF-16-LE"),
    (codecs.BOM_UTF16_BE, "UTF-16-BE"),
)
_ZEROS: Final = {
    (True, True, True, False): "UTF-32-BE",
    (False, True, True, True): "UTF-32-LE",
    (True, False, True, False): "UTF-16-BE",
    (False, True, False, True): "UTF-16-LE",
}
"""Which of the first four bytes are zero: an object begins with two characters of ASCII (RFC 4627, section 3)."""
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_ESCAPE_BYTES: Final = 6
_HIGH: Final = b"89abAB"
_PLACE: Final = re.compile(r"\(byte (\d+)\)")
_NOT_JSON: Final = re.compile(rb"-?(?:NaN|Infinity|nan|inf)\b|(?:True|False|None|undefined)\b")
_WRITTEN: Final = {"True": "write true", "False": "write false", "None": "write null"}
"""What Python writes where a text is made without its ``json``."""
_FORM: Final = re.compile(rb"[A-Za-z_]\w{0,60}=")
_GZIP: Final = b"\x1f\x8b"
_FIRST_BYTES: Final = 256
_KEY: Final = re.compile(rb'"([^"\\]{1,64})"\s{0,20}:\s{0,20}\[?[^\[\]"{}]{0,100}$')
_SEARCHED_BYTES: Final = 200


def as_utf8(data: Body) -> Body:
    """Return a body in UTF-8 and without a byte order mark, whatever it was in.

    Raises:
        InvalidJSON: it is in UTF-16 or UTF-32, and not whole.
    """
    head = bytes(data[:4])
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return _transcode(memoryview(data)[len(mark) :], encoding)
    zeros = tuple(byte == 0 for byte in head)
    return _transcode(memoryview(data), _ZEROS[zeros]) if zeros in _ZEROS else data


def _transcode(data: memoryview, encoding: str) -> Body:
    if encoding == "UTF-8":
        return data
    decoder, made = codecs.getincrementaldecoder(encoding)(), bytearray()
    try:
        for start in range(0, len(data), SLICE_BYTES):
            piece = data[start : start + SLICE_BYTES]
            made += decoder.decode(piece, final=start + SLICE_BYTES >= len(data)).encode()
            if len(made) > len(data) + MOST_TEXT_BYTES:
                break
    except UnicodeDecodeError:
        name = encoding[: len("UTF-16")]
        raise InvalidJSON(f"The body begins as {name} and is not whole {name}; send it as UTF-8") from None
    return made


def replace_halves(data: Body) -> bytearray | None:
    """Return a body with :data:`REPLACED` for every escape of half a character; ``None`` where there is none.

    The decoder takes them for the end of the text.
    """
    places, high = list[int](), -1
    for count, found in enumerate(_SURROGATE.finditer(data)):
        at = found.start()
        if count >= MOST_SURROGATES:
            return None
        if not _begins_escape(data, at):
            continue
        if data[at + 3] in _HIGH:
            if high >= 0:
                places.append(high)
            high = at
        elif high >= 0 and at == high + _ESCAPE_BYTES:
            high = -1
        else:
            places.append(at)
    if high >= 0:
        places.append(high)
    if not places:
        return None
    made = bytearray(data)
    for at in places:
        made[at : at + _ESCAPE_BYTES] = REPLACED
    return made


def has_halves(part: Body) -> bool:
    """Whether :func:`replace_halves` replaced something in a part of a body."""
    return _REPLACED.search(part) is not None


def _begins_escape(data: Body, at: int) -> bool:
    """Whether a backslash is not itself escaped."""
    before = at
    while before > 0 and data[before - 1] == ord("\\"):
        before -= 1
    return (at - before) % 2 == 0


def half_of_a_character(name: str) -> InvalidJSON:
    """Return the error for a field with an escape of half a character.

    Args:
        name: what the client calls the field.
    """
    return InvalidJSON(
        f"'{name}' has a lone surrogate, which is half of a character ('\\ud83d' without what belongs to it); send "
        "whole characters, and cut texts between them",
        {"field": name},
    )


def explain(error: Exception, data: Body, name: str = "") -> InvalidJSON:
    """Return the error for a body that the decoder does not take.

    Args:
        error: what the decoder raised.
        data: what it was given.
        name: the field that is decoded; "" for the whole body.
    """
    where = f"'{name}': " if name else ""
    if isinstance(error, RecursionError):
        return InvalidJSON("The body is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return InvalidJSON(f"The body is not valid JSON: {where}it is not UTF-8; send it as UTF-8")
    if not name and (kind := _other_kind(data)) is not None:
        return InvalidJSON(kind)
    hint = _hint(error, data)
    return InvalidJSON(f"The body is not valid JSON: {where + str(error) if hint is None else hint}")


def _other_kind(data: Body) -> str | None:
    """Return what is said of a body that is something else than JSON."""
    head = bytes(data[:_FIRST_BYTES])
    if len(data) < _FIRST_BYTES and not head.strip():
        return "The body is empty; send a JSON object"
    if head.startswith(_GZIP):
        return "The body is packed with gzip; say so with the header 'Content-Encoding: gzip'"
    if head.startswith(b"--") or _FORM.match(head):
        return "The body is a form, and not JSON; send a JSON object"
    return None


def _hint(error: Exception, data: Body) -> str | None:
    """Return what stands where the decoder stopped and what to write in its place; ``None`` where that is not known."""
    place = _PLACE.search(str(error))
    if place is None:
        return None
    at = int(place.group(1))
    if (found := _not_json(data, at)) is not None:
        return found
    byte = bytes(data[at : at + 1])
    if byte == b"'":
        return f"{error}; texts and names are in double quotes"
    if byte and byte < b" ":
        return f"{error}; in a text, write a line break as \\n and a tab as \\t"
    return None


def _not_json(data: Body, at: int) -> str | None:
    """Return what is said of a word, such as NaN, that JSON has not; ``None`` where there is none."""
    # The decoder stops at such a word, behind its sign, or behind an n that could have begun null.
    for begin in range(max(0, at - 2), at + 1):
        found = _NOT_JSON.match(bytes(data[begin : begin + 16]))
        if found is not None and begin + found.end() > at:
            break
    else:
        return None
    text = found.group().decode()
    key = _KEY.search(bytes(data[max(0, begin - _SEARCHED_BYTES) : begin]))
    of_field = f"'{key.group(1).decode('utf-8', 'replace')}' is {text}" if key is not None else f"it has {text}"
    number = text not in (*_WRITTEN, "undefined")
    instead = "send a number, or leave the field out" if number else _WRITTEN.get(text, "leave the field out")
    return f"{of_field}, which JSON has not; {instead}"

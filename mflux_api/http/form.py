"""``multipart/form-data`` in the place of a JSON object: texts are read by their field, files become base64.

A form is a body like any other: it is in memory as a whole, within the same limits, and touches no temporary folder.
"""

from binascii import b2a_base64
from collections.abc import Iterator
from typing import Final

from msgspec import Raw
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from mflux_api.errors import InvalidJSON, InvalidParameter
from mflux_api.ipc.printable import printable
from mflux_api.jobs import json_fields
from mflux_api.jobs.json_fields import Fields, JSONObject, Value
from mflux_api.jobs.unknown_fields import FieldName, Unknown, explain

MOST_PARTS: Final = 128
MOST_TEXT_BYTES: Final = 64 * 1024
"""Of a field that is not a file; a prompt has at most 10,000 characters."""
MOST_BOUNDARY: Final = 200
"""RFC 2046 allows 70 characters."""
_MOST_HEAD: Final = 8 * 1024
"""Of one part: its name, its type, the name of its file."""
_MOST_NAME: Final = 64
_SLICE_BYTES: Final = 64 * 1024


def read_form(data: bytes | bytearray, boundary: str, fields: Fields) -> JSONObject:
    """Read the known fields of a form as those of a JSON object; several parts of one name are a list.

    Args:
        data: the body.
        boundary: the content type's parameter.
        fields: what the route knows; a name may have ``[]`` behind it.

    Raises:
        InvalidParameter: it is not such a form, has too many parts, or a field is not what it should be.
    """
    values: dict[str, Value] = {}
    unknown = dict[FieldName, None]()
    for part, content in _parts(data, boundary):
        name = part.name.removesuffix("[]")
        field = fields.field(name)
        if field is None:
            unknown[FieldName(part.name[:_MOST_NAME])] = None
            continue
        value = _of_file(name, content, field) if isinstance(part, File) else _of_text(name, content, field)
        if field.most_items is None:
            if name in values:
                raise _invalid(name, "one part of this name")
            values[name] = value
            continue
        listed = values.setdefault(name, [])
        if isinstance(listed, list):
            listed += value if isinstance(value, list) else [value]
            if len(listed) > field.most_items:
                raise _invalid(name, f"at most {field.most_items} entries")
    return JSONObject(values, explain(tuple(unknown), {"": fields.names()}), texts=True)


def _of_file(name: str, content: bytes, field: json_fields.Field) -> Value:
    if not field.large:
        raise _invalid(name, "a text and not a file")
    return b2a_base64(content, newline=False).decode()


def _of_text(name: str, content: bytes, field: json_fields.Field) -> Value:
    if len(content) > MOST_TEXT_BYTES and not field.large:
        raise _invalid(name, f"at most {MOST_TEXT_BYTES // 1024} KB")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise _invalid(name, "a text in UTF-8") from None
    if field.fields is not None or (field.most_items is not None and text.lstrip().startswith("[")):
        return _json(name, content, field) if text.strip() else None
    # An empty text stands for a field that was left empty.
    return text if text or name in ("prompt", "negative_prompt") else None


def _json(name: str, content: bytes, field: json_fields.Field) -> Value:
    try:
        return field.read(Raw(content.strip()), name, Unknown())
    except InvalidJSON:
        raise _invalid(name, "JSON") from None


def _parts(data: bytes | bytearray, boundary: str) -> Iterator[tuple[Field | File, bytes]]:
    """Return each part and its content.

    Werkzeug's decoder is given slices: it searches all that it has for the boundary again and again.
    """
    if not boundary or len(boundary) > MOST_BOUNDARY or not boundary.isascii():
        raise _invalid("body", "a form whose Content-Type has a boundary of up to 200 ASCII characters")
    decoder = MultipartDecoder(boundary.encode(), _MOST_HEAD + 2 * _SLICE_BYTES)
    part: Field | File | None = None
    content, count = bytearray(), 0
    longest = len(boundary) + len("\r\n----\r\n")
    view, start, kept = memoryview(data), 0, b""
    try:
        while True:
            if start < len(view):
                piece = kept + bytes(view[start : start + _SLICE_BYTES])
                start += _SLICE_BYTES
                # It takes the CR before a boundary for content where it has not seen the boundary's end yet.
                end = piece.rfind(b"\r", max(0, len(piece) - longest))
                end = len(piece) if end == -1 else end
                decoder.receive_data(piece[:end])
                kept = piece[end:]
            elif kept:
                decoder.receive_data(kept)
                kept = b""
            else:
                decoder.receive_data(None)
            while not isinstance(event := decoder.next_event(), NeedData):
                if isinstance(event, Epilogue):
                    return
                if isinstance(event, Field | File):
                    part, content, count = event, bytearray(), count + 1
                    if count > MOST_PARTS:
                        raise _invalid("body", f"a form of at most {MOST_PARTS} parts")
                elif isinstance(event, Data) and part is not None:
                    content += event.data
                    if not event.more_data:
                        yield part, bytes(content)
    except RequestEntityTooLarge:
        raise _invalid("body", f"parts whose headers have at most {_MOST_HEAD // 1024} KB") from None
    except (ValueError, AttributeError):
        # Werkzeug's words, and what it trips over, for a form that is cut off or has no headers.
        raise _invalid("body", "a whole multipart/form-data body") from None


def _invalid(name: str, expected: str) -> InvalidParameter:
    shown = printable(name, _MOST_NAME)
    return InvalidParameter.for_field(shown, f"is invalid: expected {expected}", limit=expected)

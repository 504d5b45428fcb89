"""``multipart/form-data`` in the place of a JSON object: texts are read by their field, files become base64.

A form is a body like any other: it is in memory as a whole, within the same limits, and touches no temporary folder.
Its parts are looked at where they are, and what is large is read in slices: one call holds the interpreter.
"""

import re
from binascii import b2a_base64
from collections.abc import Iterator
from functools import partial
from typing import Final

import attrs
from msgspec import Raw
from werkzeug.http import parse_options_header

from mflux_api.errors import InvalidJSON, InvalidParameter
from mflux_api.ipc.printable import printable
from mflux_api.jobs import json_fields
from mflux_api.jobs.encoded_images import check_density
from mflux_api.jobs.json_fields import Fields, JSONObject, Value
from mflux_api.jobs.unknown_fields import FieldName, Unknown, explain
from mflux_api.system.long_texts import join_between_threads

MOST_PARTS: Final = 128
MOST_TEXT_BYTES: Final = 64 * 1024
"""Of a field that is not a file; a prompt has at most 10,000 characters."""
MOST_BOUNDARY: Final = 200
"""RFC 2046 allows 70 characters."""
_MOST_HEAD: Final = 8 * 1024
"""Of one part: its name, its type, the name of its file."""
_MOST_HEADERS: Final = 16
_MOST_PADDING: Final = 64
"""Blanks behind a boundary, which a mail server may have added."""
_MOST_NAME: Final = 64
_SLICE_BYTES: Final = 192 * 1024
"""A multiple of three, so that base64 of slices is that of the whole."""
_FORM_TYPE: Final = "form-data"
_ENCODINGS: Final = frozenset({"", "binary", "7bit", "8bit"})
"""Of a part: those that change nothing. RFC 7578 wants no others."""


@attrs.frozen(kw_only=True)
class Part:
    """One part of a form."""

    name: str
    file: str | None
    """What the client calls the file; ``None`` where it is a text."""
    content: memoryview

    @property
    def left_empty(self) -> bool:
        """Whether it stands for a field for files in which none was chosen."""
        return self.file == "" and not self.content


def read_form(data: bytes | bytearray, boundary: str, fields: Fields) -> JSONObject:
    """Read the known fields of a form as those of a JSON object; several parts of one name are a list.

    Args:
        data: the body.
        boundary: the content type's parameter.
        fields: what the route knows; a name may have ``[]`` behind it.

    Raises:
        InvalidParameter: it is not such a form, has too many parts, or a field is not what it should be.
        BodyTooLarge: a list of images in JSON is large and not for its images.
    """
    values: dict[str, Value] = {}
    unknown = dict[FieldName, None]()
    for part in _parts(data, boundary):
        name = part.name.removesuffix("[]")
        field = fields.field(name)
        if field is None:
            unknown[FieldName(part.name[:_MOST_NAME])] = None
            continue
        if field.brief is not None or field.only_presence:
            _add_without_effect(values, name, part, field)
            continue
        value = _of_text(name, part.content, field) if part.file is None else _of_file(name, part, field)
        if field.most_items is None:
            if name in values:
                raise _invalid(name, "one part of this name")
            values[name] = value
            continue
        if value is None:
            continue
        listed = values.setdefault(name, [])
        if isinstance(listed, list):
            listed += value if isinstance(value, list) else [value]
            if len(listed) > field.most_items:
                raise _invalid(name, f"at most {field.most_items} entries")
    return JSONObject(values, explain(tuple(unknown), {"": fields.names()}), texts=True)


def _add_without_effect(values: dict[str, Value], name: str, part: Part, field: json_fields.Field) -> None:
    """Read a field that is only looked at, to tell whether it asks for something; whatever it holds is no error."""
    value: Value
    if field.only_presence:
        value = None
    elif part.file is not None:
        value = None if part.left_empty else json_fields.OMITTED
    elif bytes(part.content[:1]) in (b"[", b"{"):
        value = _json(name, part.content, field)
    else:
        short = len(part.content) <= MOST_TEXT_BYTES
        value = str(part.content, "utf-8", "replace") if short else json_fields.OMITTED
    if name in values:
        before = values[name]
        value = [*(before if isinstance(before, list) else [before]), value]
    values[name] = value


def _of_file(name: str, part: Part, field: json_fields.Field) -> Value:
    if part.left_empty:
        return None
    if not field.large or field.is_json:
        raise _invalid(name, "a text and not a file")
    return join_between_threads([partial(_encode, piece) for piece in _slices(part.content)])


def _encode(piece: memoryview) -> str:
    return b2a_base64(piece, newline=False).decode("ascii")


def _of_text(name: str, content: memoryview, field: json_fields.Field) -> Value:
    if len(content) > MOST_TEXT_BYTES:
        if not field.large:
            raise _invalid(name, f"at most {MOST_TEXT_BYTES // 1024} KB")
        return _of_long_text(name, content, field)
    try:
        text = str(content, "utf-8")
    except UnicodeDecodeError:
        raise _invalid(name, "a text in UTF-8") from None
    if field.is_json or (field.most_items is not None and text.lstrip().startswith("[")):
        return _json(name, text.strip().encode(), field) if text.strip() else None
    # An empty text stands for a field that was left empty.
    return text if text or name in ("prompt", "negative_prompt") else None


def _of_long_text(name: str, content: memoryview, field: json_fields.Field) -> Value:
    """Return an image that comes as a text, or a list of them in JSON."""
    if field.is_json or (field.most_items is not None and content[0] == ord("[")):
        check_density(content)
        return _json(name, content, field)
    try:
        return join_between_threads([partial(str, piece, "ascii") for piece in _slices(content)])
    except UnicodeDecodeError:
        raise _invalid(name, "a file, base64 or a data URL") from None


def _json(name: str, content: bytes | memoryview, field: json_fields.Field) -> Value:
    try:
        return field.read(Raw(content), name, Unknown())
    except InvalidJSON:
        raise _invalid(name, "JSON") from None


def _slices(content: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(content), _SLICE_BYTES):
        yield content[start : start + _SLICE_BYTES]


def _parts(data: bytes | bytearray, boundary: str) -> Iterator[Part]:
    """Return each part; what is before the first boundary and behind the last one is not looked at."""
    if not boundary or len(boundary) > MOST_BOUNDARY or not boundary.isascii():
        raise _invalid("body", f"a form whose Content-Type has a boundary of up to {MOST_BOUNDARY} ASCII characters")
    line = _Boundary(boundary)
    view, found, count = memoryview(data), line.first(data), 0
    while found is not None and not found.group().endswith(b"--"):
        count += 1
        if count > MOST_PARTS:
            raise _invalid("body", f"a form of at most {MOST_PARTS} parts")
        # From the line feed of the boundary's line: a part may have no headers at all.
        end = data.find(b"\r\n\r\n", found.end() - 2, found.end() + _MOST_HEAD)
        if end == -1 and len(data) - found.end() > _MOST_HEAD:
            raise _invalid("body", f"parts whose headers have at most {_MOST_HEAD // 1024} KB")
        following = None if end == -1 else line.next(data, end + 2)
        if following is None:
            break
        content = view[end + 4 : following.start()] if following.start() > end + 2 else view[:0]
        yield _part(bytes(view[found.end() : max(end, found.end())]), content)
        found = following
    else:
        if found is not None:
            return
    raise _invalid("body", "a whole multipart/form-data body")


class _Boundary:
    """The lines between the parts."""

    def __init__(self, boundary: str) -> None:
        # What is behind it tells it from a content that begins alike.
        behind = rb"(?:--|[ \t]{0,%d}\r\n)" % _MOST_PADDING
        escaped = re.escape(f"--{boundary}".encode())
        self._first, self._next = re.compile(escaped + behind), re.compile(rb"\r\n" + escaped + behind)
        self._most = len(boundary) + _MOST_PADDING + len("\r\n----\r\n")

    def first(self, data: bytes | bytearray) -> re.Match[bytes] | None:
        return self._first.match(data) or self.next(data, 0)

    def next(self, data: bytes | bytearray, start: int) -> re.Match[bytes] | None:
        """Return the first such line from a place on; other threads have their turn in between."""
        for begin in range(start, len(data), _SLICE_BYTES):
            if found := self._next.search(data, begin, begin + _SLICE_BYTES + self._most):
                return found
        return None


def _part(head: bytes, content: memoryview) -> Part:
    lines = head.decode("utf-8", "replace").split("\r\n")
    if len(lines) > _MOST_HEADERS or not all(":" in line for line in lines):
        raise _invalid("body", f"parts with 1 to {_MOST_HEADERS} headers, 'Content-Disposition' among them")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    kind, parameters = parse_options_header(headers.get("content-disposition"))
    name = parameters.get("name")
    if kind.lower() != _FORM_TYPE or name is None:
        raise _invalid("body", "parts with 'Content-Disposition: form-data; name=…'")
    encoding = headers.get("content-transfer-encoding", "").lower()
    if encoding not in _ENCODINGS:
        raise _invalid(name, "a part without Content-Transfer-Encoding")
    return Part(name=name, file=parameters.get("filename"), content=content)


def _invalid(name: str, expected: str) -> InvalidParameter:
    shown = printable(name, _MOST_NAME)
    return InvalidParameter.for_field(shown, f"is invalid: expected {expected}", limit=expected)

"""Forms with a file, ``multipart/form-data``: the file is passed on as it comes, and touches no temporary folder."""

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from typing import Final

import attrs
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from mflux_api.errors import InvalidParameter
from mflux_api.ipc.printable import printable

FILE: Final = "file"
"""The field with the file; other files are passed over."""

MOST_PARTS: Final = 16
MOST_FIELD_BYTES: Final = 1000
MOST_NAME: Final = 64
MOST_BOUNDARY: Final = 200
"""RFC 2046 allows 70 characters."""

_SLICE_BYTES: Final = 64 * 1024
_MOST_BUFFERED: Final = 2 * _SLICE_BYTES
"""The decoder keeps so much of what it cannot tell yet, such as the headers of a part."""


@attrs.frozen(kw_only=True)
class Form:
    """What a form says beside the file's content."""

    file_name: str | None
    """What the client calls the file; ``None`` if the form has none."""
    fields: Mapping[str, str]


async def read_form(body: AsyncIterable[bytes], boundary: str, write: Callable[[bytes], Awaitable[None]]) -> Form:
    """Read a form to its end.

    Args:
        body: the request's.
        boundary: the content type's parameter.
        write: is given the file's content as it comes.

    Raises:
        InvalidParameter: it is not such a form, or has too many or too large fields.
    """
    reader = _Reader(boundary)
    async for data in body:
        pieces = [piece for start in range(0, len(data), _SLICE_BYTES) for piece in reader.feed(data, start)]
        if pieces:
            await write(b"".join(pieces))
    for piece in reader.rest():
        await write(piece)
    return reader.form


class _Reader:
    def __init__(self, boundary: str) -> None:
        if not boundary or len(boundary) > MOST_BOUNDARY or not boundary.isascii():
            raise _invalid("a form whose Content-Type has a boundary of up to 200 ASCII characters")
        self._decoder = MultipartDecoder(boundary.encode(), _MOST_BUFFERED)
        self._parts = 0
        self._longest_boundary = len(boundary) + len("\r\n----\r\n")
        self._kept = b""
        self._part: Field | File | None = None
        self._value = b""
        self._file_name: str | None = None
        self._fields: dict[str, str] = {}

    def feed(self, data: bytes, start: int) -> list[bytes]:
        """Take a slice of the body; return what it has of the file."""
        data = self._kept + data[start : start + _SLICE_BYTES]
        # Werkzeug takes the CR before a boundary for content where it has not seen the boundary's end yet.
        end = data.rfind(b"\r", max(0, len(data) - self._longest_boundary))
        end = len(data) if end == -1 else end
        self._kept = data[end:]
        return self._decode(data[:end])

    def rest(self) -> list[bytes]:
        """Say that the body has ended; return what was kept of the file."""
        pieces = self._decode(self._kept)
        self._decode(None)
        return pieces

    @property
    def form(self) -> Form:
        return Form(file_name=self._file_name, fields=self._fields)

    def _decode(self, data: bytes | None) -> list[bytes]:
        pieces = list[bytes]()
        try:
            self._decoder.receive_data(data)
            while not isinstance(event := self._decoder.next_event(), NeedData | Epilogue):
                if isinstance(event, Field | File):
                    self._begin(event)
                elif isinstance(event, Data):
                    pieces += self._add(event)
        except RequestEntityTooLarge:
            raise _too_large(
                f"the headers of part {self._parts + 1} of the form are over {_MOST_BUFFERED // 1024} KB",
                "send short ones",
                limit_bytes=_MOST_BUFFERED,
            ) from None
        except (ValueError, AttributeError):
            # Werkzeug's words, and what it trips over, for a form that is cut off or has no headers.
            raise _invalid("a whole multipart/form-data body") from None
        return pieces

    def _begin(self, part: Field | File) -> None:
        self._part, self._value, self._parts = part, b"", self._parts + 1
        if self._parts > MOST_PARTS:
            raise _too_large(
                f"the form has more than {MOST_PARTS} parts", "send the file and its name alone", limit_parts=MOST_PARTS
            )
        if isinstance(part, File) and part.name == FILE:
            if self._file_name is not None:
                raise _invalid("one file only")
            self._file_name = part.filename

    def _add(self, data: Data) -> list[bytes]:
        part = self._part
        if isinstance(part, File):
            return [data.data] if part.name == FILE and data.data else []
        self._value += data.data
        if len(self._value) > MOST_FIELD_BYTES:
            name = printable(getattr(part, "name", ""), MOST_NAME)
            raise _too_large(
                f"the form's field '{name}' has more than {MOST_FIELD_BYTES} bytes",
                f"send the LoRA as a file in the field '{FILE}', and leave out what is not its name",
                part=name,
                limit_bytes=MOST_FIELD_BYTES,
            )
        if part is not None and not data.more_data:
            self._fields[str(part.name)] = self._value.decode("utf-8", "replace")
        return []


def _too_large(problem: str, advice: str, **details: object) -> InvalidParameter:
    return InvalidParameter.for_field(FILE, f"is invalid: {problem}; {advice}", limit="multipart/form-data", **details)


def _invalid(expected: str) -> InvalidParameter:
    return InvalidParameter.for_field(FILE, f"is invalid: expected {expected}", limit="multipart/form-data")

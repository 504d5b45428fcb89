"""JSON responses: encoding attrs objects, and sending what is large in pieces."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any

import attrs
import msgspec
from quart import Response
from quart.wrappers.response import ResponseBody

INTERNAL_ERROR = "Internal error; the debug log has the details"
"""What a client is told of a defect."""

PIECE_BYTES = 64 * 1024
"""A client that does not read has no more than some of these of its own in memory."""


@attrs.frozen
class Answer:
    """The bytes of a body, of which some may be shared with other answers."""

    segments: tuple[bytes | bytearray, ...]

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return sum(map(len, self.segments))

    def pieces(self) -> Iterator[bytes]:
        """Return the bytes piece by piece."""
        for segment in self.segments:
            view = memoryview(segment)
            for start in range(0, len(view), PIECE_BYTES):
                yield bytes(view[start : start + PIECE_BYTES])


def ending_in_text(value: Any, text: bytes | bytearray) -> Answer:
    """Return an attrs object as JSON, with a text in its last field that is not copied.

    Args:
        value: the object, whose last field is an empty text.
        text: what stands there: ASCII without quotation marks, such as base64.
    """
    head = to_json(value)
    if not head.endswith(b'""}'):
        raise ValueError("the last field must be an empty text")
    return Answer((head[:-2], text, b'"}'))


class _Pieces(ResponseBody):
    """No asynchronous generator: one that a client leaves half-way would be left to the garbage collector."""

    def __init__(self, answer: Answer) -> None:
        self._pieces: Iterator[bytes] = answer.pieces()

    async def __aenter__(self) -> "_Pieces":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The frames of a cancelled send are a cycle: its megabytes would wait for the garbage collector.
        self._pieces = iter(())

    def __aiter__(self) -> "_Pieces":
        return self

    async def __anext__(self) -> bytes:
        piece = next(self._pieces, None)
        if piece is None:
            raise StopAsyncIteration
        return piece


def json_response(value: Any, status: int = 200) -> Response:
    """Return an attrs object as a JSON response."""
    return json_bytes(to_json(value), status)


def json_bytes(data: bytes, status: int = 200) -> Response:
    """Return bytes that are JSON already."""
    return Response(data, status=status, content_type="application/json")


def json_answer(answer: Answer) -> Response:
    """Return a JSON response that is sent in pieces."""
    headers = {"Content-Length": str(answer.size)}
    return Response(_Pieces(answer), content_type="application/json", headers=headers)


def file_answer(data: bytes, content_type: str) -> Response:
    """Return a file that is sent in pieces."""
    return Response(_Pieces(Answer((data,))), content_type=content_type, headers={"Content-Length": str(len(data))})


def to_json(value: Any) -> bytes:
    """Encode an attrs object, or a tuple of them, without what is unset; the keys come in the class's order."""
    if isinstance(value, tuple):
        return msgspec.json.encode([attrs.asdict(each, filter=_is_set) for each in value])
    return msgspec.json.encode(attrs.asdict(value, filter=_is_set))


def _is_set(_: Any, value: Any) -> bool:
    return value is not msgspec.UNSET

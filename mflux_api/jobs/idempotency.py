"""``Idempotency-Key``: the same key with the same body is one job, however often it is sent."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from mflux_api.errors import InvalidJSON, InvalidParameter

HEADER = "Idempotency-Key"
MAX_LENGTH = 255

_PIECE = 256 * 1024
_PRINTABLE = re.compile(rf"[!-~]([ -~]{{0,{MAX_LENGTH - 2}}}[!-~])?")


@attrs.frozen(kw_only=True)
class IdempotencyKey:
    """A client's key and what it was sent with, as digests: neither credentials nor prompts are kept twice."""

    key: str
    """Digest of the caller and the key: two callers with keys of their own never meet."""
    body: str
    """Digest of the fields that are known, whatever their order and blanks."""


@attrs.frozen(kw_only=True)
class IdempotencyRecord:
    """What a key was first sent with, and its job."""

    body: str
    job_id: str


def idempotency_key(text: str, body: Mapping[str, Any], *, caller: str) -> IdempotencyKey:
    """Read the header's value.

    Raises:
        InvalidParameter: it is not a key.
        InvalidJSON: the body is nested too deeply to be compared.
    """
    if _PRINTABLE.fullmatch(text) is None:
        limit = f"1 to {MAX_LENGTH} printable ASCII characters"
        raise InvalidParameter(f"'{HEADER}' is invalid: expected {limit}", {"field": HEADER, "limit": limit})
    try:
        digest = hashlib.sha256()
        for piece in _pieces(body):
            digest.update(piece.encode())
    except RecursionError:
        raise InvalidJSON("The body is nested too deeply") from None
    owned = hashlib.sha256(caller.encode()).digest() + text.encode()
    return IdempotencyKey(key=hashlib.sha256(owned).hexdigest(), body=digest.hexdigest())


def _pieces(value: Any) -> Iterator[str]:
    """Return what ``json.dumps(value, sort_keys=True)`` would, piece by piece: 60 MB at once hold the interpreter.

    It is escaped to ASCII: a prompt may hold a lone surrogate, which has no bytes in UTF-8.
    """
    match value:
        case str() if len(value) > _PIECE:
            yield '"'
            for start in range(0, len(value), _PIECE):
                yield json.dumps(value[start : start + _PIECE])[1:-1]
            yield '"'
        case list():
            yield from _joined("[", ([item] for item in value), "]")
        case dict():
            named = ((f"{json.dumps(name)}: ", item) for name, item in sorted(value.items()))
            yield from _joined("{", named, "}")
        case _:
            yield json.dumps(value)


def _joined(begin: str, entries: Iterable[Sequence[Any]], end: str) -> Iterator[str]:
    between = begin
    for *label, value in entries:
        yield between + "".join(label)
        yield from _pieces(value)
        between = ", "
    yield end if between != begin else begin + end

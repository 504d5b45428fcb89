"""What a line of the log has besides its text: the request that it belongs to, and values that a program reads."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

_ATTRIBUTE: Final = "mflux_api_fields"
"""Of a log record; a name that no other library's records have."""

_request_id: ContextVar[str] = ContextVar("request id", default="")


def begin_request(request_id: str) -> None:
    """Have what this task logs from now on belong to a request."""
    _request_id.set(request_id)


def current_request() -> str:
    """Return the id of the request that this task works on; an empty text where it works on none."""
    return _request_id.get()


def with_fields(**values: str | float | None) -> dict[str, Mapping[str, Any]]:
    """Return the ``extra`` of a log call that gives its line these values."""
    return {_ATTRIBUTE: values}


def fields_of(record: object) -> Mapping[str, Any]:
    """Return the values that a log record was given."""
    fields: Mapping[str, Any] = getattr(record, _ATTRIBUTE, {})
    return fields

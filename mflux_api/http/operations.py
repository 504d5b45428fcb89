"""What a routes module says of one route for OpenAPI: the class, and the groups of errors that routes share."""

from collections.abc import Mapping
from typing import Any

import attrs

from mflux_api.access.keys import Scope
from mflux_api.errors import (
    BodyTooLarge,
    DiskFull,
    DownloadFailed,
    EngineCrashed,
    EngineUnavailable,
    GenerationFailed,
    ImageGone,
    InvalidJSON,
    InvalidModel,
    InvalidParameter,
    JobCancelled,
    ModelGated,
    ModelNotDownloaded,
    ModelNotFound,
    OutOfMemory,
    QueueFull,
    RequestTimeout,
    ServerBusy,
    ServiceError,
    ShuttingDown,
    TooManyDeliveries,
    TooManyJobs,
    UnsupportedEncoding,
)

Errors = tuple[type[ServiceError], ...]

BODY_ERRORS: Errors = (InvalidJSON, InvalidParameter, BodyTooLarge, UnsupportedEncoding, RequestTimeout, ServerBusy)
"""Errors of reading a JSON body."""

SUBMIT_ERRORS: Errors = (
    *BODY_ERRORS,
    InvalidModel,
    ModelNotDownloaded,
    ModelNotFound,
    TooManyDeliveries,
    TooManyJobs,
    QueueFull,
    ShuttingDown,
    EngineUnavailable,
    DiskFull,
)
"""Errors of submitting a job."""

RUN_ERRORS: Errors = (
    JobCancelled,
    GenerationFailed,
    EngineCrashed,
    OutOfMemory,
    ImageGone,
    ModelGated,
    DownloadFailed,
)
"""Errors of a job, where the caller waits for its end."""


@attrs.frozen(kw_only=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    summary: str
    scope: Scope | None
    """What a key has to allow; ``None`` is open without one, and pages of other origins may not ask for ``MANAGE``."""
    response: type[Any] | None = None
    """Class of the JSON object that is answered; ``None`` where ``content`` says what comes."""
    accepted: type[Any] | None = None
    """Class of the JSON object that is answered with 202, where a client need not wait for the end."""
    awaited: type[Any] | None = None
    """Class of the JSON object that is answered in place of ``response``, where the client waits for the end."""
    is_list: bool = False
    """Whether the answer is an array of ``response``."""
    body: type[Any] | None = None
    """Class of the JSON object that the request carries."""
    body_required: tuple[str, ...] = ()
    """Fields that this path requires of the body, besides those that the class does."""
    body_optional: bool = False
    """Whether no body stands for an empty object."""
    forms: bool = False
    """Whether the same fields may come as ``multipart/form-data``, with images as files."""
    upload: bool = False
    """Whether the body is a file instead of a JSON object."""
    parameters: tuple[Mapping[str, Any], ...] = ()
    """Parameters of the path, the query and the headers."""
    errors: Errors = ()
    """Errors of this operation, besides those that every request may get."""
    content: Mapping[str, Any] = attrs.field(factory=dict)
    """Media types of an answer that is not a JSON object of a class."""
    bodiless: Mapping[str, str] = attrs.field(factory=dict)
    """Statuses that are answered without a body, and when."""
    also_describes: tuple[type[Any], ...] = ()
    """Classes that clients meet without a schema that refers to them, such as the data of an event."""


def path_parameter(name: str, schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a parameter of the path; a string, unless its schema says otherwise."""
    return {"name": name, "in": "path", "required": True, "schema": dict(schema or {"type": "string"})}


def query_parameter(name: str, schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    """Return an optional parameter of the query."""
    return {"name": name, "in": "query", "schema": dict(schema), "description": description}

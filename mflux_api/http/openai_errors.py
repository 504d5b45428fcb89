"""Errors in OpenAI's shape, which every failure under ``/v1`` has: its SDKs read no other."""

from collections.abc import Mapping
from typing import Any, Final

import attrs

from mflux_api.errors import Forbidden, InvalidModel, ModelNotFound, ServiceError, Unauthorized

PREFIX: Final = "/v1/"

_MODEL_NOT_FOUND: Final = "model_not_found"
_RETRIED: Final = frozenset({408, 409, 429})
"""Statuses below 500 that the SDKs try again by themselves."""


@attrs.frozen(kw_only=True)
class OpenAIError:
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str
    details: Mapping[str, Any]
    """Those of the service's own errors; an addition to OpenAI's fields."""


@attrs.frozen(kw_only=True)
class OpenAIErrorBody:
    """What every failed request under ``/v1`` answers with."""

    error: OpenAIError


def speaks_openai(path: str) -> bool:
    """Whether a path is one of OpenAI's, a known one or not."""
    return path.startswith(PREFIX)


def body_of(error: ServiceError) -> OpenAIErrorBody:
    """Return an error as OpenAI's clients read it."""
    param = error.details.get("field")
    if isinstance(error, InvalidModel | ModelNotFound):
        code, param = _MODEL_NOT_FOUND, "model"
    elif isinstance(error, Unauthorized):
        code = "invalid_api_key"
    else:
        code = error.code.lower()
    return OpenAIErrorBody(
        error=OpenAIError(
            message=error.message,
            type=_type(error),
            param=param if isinstance(param, str) else None,
            code=code,
            details=dict(error.details),
        )
    )


def status_of(error: ServiceError) -> int:
    """Return the status: a model that is not there is 404 here."""
    return status_of_class(type(error))


def status_of_class(error: type[ServiceError]) -> int:
    """Return the status of all errors of a class."""
    return 404 if issubclass(error, InvalidModel) else error.status


def headers_of(error: ServiceError) -> dict[str, str]:
    """Return what keeps the SDKs from trying again what would fail again."""
    tried_again = error.status >= 500 or error.status in _RETRIED
    return {"x-should-retry": "false"} if tried_again and error.retry_after is None else {}


def _type(error: ServiceError) -> str:
    if isinstance(error, Forbidden):
        return "permission_error"
    if isinstance(error, Unauthorized):
        return "authentication_error"
    if error.status == 429:
        return "rate_limit_error"
    return "server_error" if error.status >= 500 else "invalid_request_error"

"""Exceptions as answers: every failure of every route becomes ``{"error", "code", "details"}``."""

import logging
from typing import Final

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from mflux_api.errors import (
    InternalError,
    InvalidJSON,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    Unauthorized,
    UnsupportedEncoding,
)
from mflux_api.http.body import MAX_BODY_BYTES
from mflux_api.http.body_limits import too_large
from mflux_api.http.content_encoding import ACCEPTED
from mflux_api.http.openai_errors import body_of, headers_of, speaks_openai, status_of
from mflux_api.http.request_log import note_error
from mflux_api.http.responses import INTERNAL_ERROR, json_response
from mflux_api.http.schemas import ErrorBody

logger = logging.getLogger(__name__)


_BY_SCRIPT: Final = "XMLHttpRequest"
"""What a page's own script says in ``X-Requested-With``."""


def error_response(error: ServiceError) -> Response:
    """Return an error in the contract's shape."""
    note_error(error)
    if speaks_openai(request.path):
        response = json_response(body_of(error), status_of(error))
        response.headers.update(headers_of(error))
    else:
        body = ErrorBody(error=error.message, code=error.code, details=dict(error.details))
        response = json_response(body, error.status)
    if isinstance(error, Unauthorized) and request.headers.get("X-Requested-With") != _BY_SCRIPT:
        # Lets a browser ask for the key where it cannot set headers: EventSource and <img>. A page that asks for it by
        # itself says so, or the browser would ask before it.
        response.headers["WWW-Authenticate"] = 'Basic realm="mflux-api"'
    if isinstance(error, UnsupportedEncoding):
        response.headers["Accept-Encoding"] = ACCEPTED
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def install(app: QuartTrio) -> None:
    """Register the handlers."""

    @app.errorhandler(ServiceError)
    async def known(error: ServiceError) -> Response:
        return error_response(error)

    @app.errorhandler(HTTPException)
    async def protocol(error: HTTPException) -> Response:
        response = error_response(_translate(error))
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    async def unknown(error: Exception) -> Response:
        logger.error("a request failed: %s", type(error).__name__)
        logger.debug("a request failed", exc_info=error)
        return error_response(InternalError(INTERNAL_ERROR))


def _translate(error: HTTPException) -> ServiceError:
    match error.code:
        case 404:
            return NotFound("There is nothing at this path; see docs/api.md for the endpoints")
        case 405:
            return MethodNotAllowed("This path does not take this method; the Allow header names those it does")
        case 413:
            return too_large(request.max_content_length or MAX_BODY_BYTES)
        case 400:
            return InvalidJSON("The request cannot be read")
        case _:
            logger.error("a request failed with HTTP status %s", error.code)
            return InternalError(INTERNAL_ERROR)

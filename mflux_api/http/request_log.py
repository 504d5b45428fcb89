"""A request's id, in its answer and in the log, and a line for each request that is refused; so many lines a minute."""

import logging
import re
import secrets
from typing import Final

import trio
from quart import Response, g, request
from quart_trio import QuartTrio

from mflux_api.errors import ServiceError
from mflux_api.http.metrics import method_label, route_label
from mflux_api.system.log_fields import begin_request, with_fields

LINES_IN_A_MINUTE: Final = 60
"""A client that is refused in a loop must fill no disk; what has no line is counted."""
MINUTE: Final = 60.0

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROBES: Final = frozenset({"/livez", "/readyz"})
"""Asked every few seconds: their 503 refuses nothing."""

logger = logging.getLogger("mflux_api")


def install(app: QuartTrio) -> None:
    """Have the app's requests logged. To be installed first: what refuses a request comes after."""
    lines = Lines()

    @app.before_request
    async def begin() -> None:
        theirs = request.headers.get("X-Request-ID", "")
        g.request_id = theirs if _REQUEST_ID.fullmatch(theirs) else secrets.token_hex(8)
        begin_request(g.request_id)

    @app.after_request
    async def end(response: Response) -> Response:
        # An error before the first hook leaves it out.
        request_id = g.get("request_id") or secrets.token_hex(8)
        response.headers["X-Request-ID"] = request_id
        if response.status_code >= 400 and request.path not in _PROBES:
            lines.refused(response.status_code, g.get("error_code", ""), request_id)
        return response


def note_error(error: ServiceError) -> None:
    """Note why the current request is refused, for its line."""
    g.error_code = error.code


class Lines:
    """The lines of one app's refused requests. Its times are Trio's."""

    def __init__(self) -> None:
        self._minute = float("-inf")
        self._written = 0
        self._left_out = 0

    def refused(self, status: int, code: str, request_id: str) -> None:
        """Log a refused request, or count it where there were too many."""
        now = trio.current_time()
        if now - self._minute >= MINUTE:
            self._minute, self._written = now, 0
            if self._left_out:
                logger.info("%d further request(s) were refused since, without a line each", self._left_out)
                self._left_out = 0
        if self._written >= LINES_IN_A_MINUTE:
            self._left_out += 1
            return
        self._written += 1
        method, route = method_label(), route_label()
        # No path and no query: they may hold tickets, and texts of strangers.
        logger.info(
            "request refused: %s %s, %d %s",
            method,
            route,
            status,
            code or "-",
            extra=with_fields(method=method, route=route, status=status, code=code or None, request_id=request_id),
        )

"""Health, answered without the app: a monitor is heard while a crowd keeps the app busy.

Only the plain question of a monitor is answered here; any other request for these paths goes to the app, whose answer
is the same.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import h11
import trio

from mflux_api.errors import ServiceError
from mflux_api.http.responses import to_json

PROBES: Final = "PROBES"
"""Key of the app's config: its :class:`Probes`."""

_PLAIN: Final = frozenset(
    {
        *(b"host", b"user-agent", b"accept", b"accept-encoding", b"accept-language", b"cache-control", b"pragma"),
        *(b"connection", b"keep-alive", b"authorization", b"x-api-key"),
        *(b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"),
    }
)
"""Headers that change nothing in the answer, which needs no key. Origins, bodies and ids are the app's to judge."""

Question = Callable[[], Awaitable[Any]]


class Probes:
    """The answers of one app."""

    def __init__(
        self,
        questions: Mapping[str, Question],
        allows: Callable[[str], bool],
        headers: Mapping[str, str],
        answered: Callable[[str, float], None],
    ) -> None:
        """Take what is asked.

        Args:
            questions: by path, what returns the body as an attrs object; an error is the app's to answer.
            allows: whether a Host header is answered.
            headers: what every answer of the app has.
            answered: called with the path of each question that was answered here, and the seconds that it took.
        """
        self._questions = {path.encode(): question for path, question in questions.items()}
        self._allows = allows
        self._answered = answered
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    def know(self, request: h11.Request) -> bool:
        """Whether a request is one of the plain questions."""
        return (
            request.method == b"GET"
            and request.target in self._questions
            and all(name in _PLAIN for name, _ in request.headers)
            and self._allows(dict(request.headers).get(b"host", b"").decode("latin-1"))
        )

    async def answer(self, request: h11.Request) -> tuple[list[tuple[bytes, bytes]], bytes] | None:
        """Return headers and body of a 200 to what they know, or ``None`` where the app has to answer."""
        began = trio.current_time()
        try:
            body = to_json(await self._questions[request.target]())
        except ServiceError:
            return None
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", secrets.token_hex(8).encode()),
            *self._headers,
        ]
        self._answered(request.target.decode(), trio.current_time() - began)
        return headers, body

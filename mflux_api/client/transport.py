"""What both clients share: httpx's options, and its errors in our words."""

import os
import socket
import ssl
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from mflux_api.client.address import base_url, transport_options
from mflux_api.client.calls import ANSWER_SECONDS, Call, segment
from mflux_api.client.errors import ServerUnreachable, UnexpectedAnswer
from mflux_api.errors import ServiceRestarting

CONNECT_SECONDS = 10.0
RETRY_PAUSES = (0.2, 1.0, 3.0)
"""Seconds before each further try of a call that may be sent twice, where the server could not be reached."""
CANCEL_SECONDS = 5.0
"""What telling the server of a cancel may take, for a program that is leaving."""
CHUNK_BYTES = 2**16

RETRYABLE = (ServerUnreachable, ServiceRestarting)


class Connection:
    """Where a server is, and what is sent with every call."""

    def __init__(self, url: str, api_key: str | None, *, retries: int) -> None:
        self.base = base_url(url)
        self.retries = retries
        self.reached = False
        """Whether it has answered before."""
        if api_key is not None and not api_key.isprintable():
            raise ValueError("the API key has characters that no header can hold")
        self._headers: dict[str, Any] = {"X-API-Key": api_key.encode()} if api_key else {}

    def options(self) -> dict[str, Any]:
        """Return what ``httpx.Client`` and ``httpx.AsyncClient`` are made with.

        Raises:
            ServerUnreachable: a variable of the environment names a proxy that cannot be used.
        """
        return {
            "base_url": f"{self.base}/api/v1/",
            "headers": self._headers,
            "timeout": httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            **transport_options(self.base),
        }

    def request(self, call: Call[Any]) -> dict[str, Any]:
        """Return what httpx builds the request of a call with."""
        return {
            "method": call.method,
            "url": call.path,
            "params": dict(call.params),
            "json": call.json,
            "headers": dict(call.headers),
            "timeout": httpx.Timeout(call.seconds, connect=CONNECT_SECONDS),
        }

    def pauses(self, call: Call[Any]) -> Iterator[float]:
        """Return how long to wait before each further try."""
        return iter(RETRY_PAUSES[: self.retries] if call.repeatable else ())

    def may_come_back(self, error: Exception) -> bool:
        """Whether a further try may do better: a server that was never there is told at once."""
        return self.reached or not isinstance(error, ServerUnreachable) or error.connected

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn httpx's errors into ours.

        Raises:
            ServerUnreachable: no whole answer came.
            UnexpectedAnswer: what came is not HTTP.
        """
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            reason = "it took too long" if isinstance(error, httpx.TimeoutException) else _reason(error)
            raise ServerUnreachable(self.base, reason, connected=False) from None
        except httpx.TimeoutException:
            raise ServerUnreachable(self.base, "it took too long") from None
        except httpx.RemoteProtocolError as error:
            if not any(left in str(error).lower() for left in ("peer closed", "disconnected")):
                raise UnexpectedAnswer(self.base) from None
            raise ServerUnreachable(self.base, None) from None
        except (httpx.TransportError, httpx.StreamError, httpx.DecodingError) as error:
            raise ServerUnreachable(self.base, _reason(error)) from None


def new_key() -> str:
    """Return a fresh idempotency key: a job that is submitted again over a broken connection is one job."""
    return uuid.uuid4().hex


def stream_request(job_id: str, params: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, Any]:
    """Return what httpx builds the request of an event stream with; a comment comes every 15 s."""
    return {
        "method": "GET",
        "url": f"jobs/{segment(job_id)}/stream",
        "params": dict(params),
        "headers": dict(headers),
        "timeout": httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
    }


def _reason(error: BaseException) -> str:
    """Say what is wrong in the system's own words, which lie under those of httpx and of the event loop."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return cause.reason.replace("_", " ").lower()
        if isinstance(cause, OSError) and cause.errno:
            # Event loops put words of their own where the system's are; of a name that is not found only they tell.
            words = cause.strerror if isinstance(cause, socket.gaierror) else os.strerror(cause.errno)
            return _lowered(words or type(cause).__name__)
    return _lowered(str(error) or type(error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _causes(each)
        error = error.__cause__ or error.__context__


def _lowered(text: str) -> str:
    return f"{text[:1].lower()}{text[1:]}".rstrip(".")

"""Asking a running server over HTTP, for commands that its state directory's lock keeps from doing it themselves."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from mflux_api.config import Settings
from mflux_api.errors import ServiceError, by_code
from mflux_api.system.network_variables import find_problem, is_loopback, proxy_for

_ANSWER_SECONDS = 600.0
"""What loading a large model may take."""


def address(settings: Settings) -> str:
    """Return the URL of the server that these settings describe."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.server.host, settings.server.host)
    return f"http://{host}:{settings.server.port}"


def call(
    settings: Settings, url: str | None, method: str, path: str, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Send a request and return the JSON object that is answered.

    Args:
        settings: where the server is, and a key for it.
        url: the server, where it is another than the configured one.
        method: of HTTP.
        path: below ``/api/v1/``.
        body: a JSON object to send.

    Raises:
        ServiceError: the server refused.
        ConnectionError: no server answers there, or a variable of the environment keeps it from being asked.
    """
    base = (url or address(settings)).rstrip("/")
    if "://" not in base:
        base = f"http://{base}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{base}/api/v1/{path}", method=method, data=data)
    if data is not None:
        request.add_header("Content-Type", "application/json")
    if settings.security.api_keys:
        request.add_header("X-API-Key", settings.security.api_keys[0])
    try:
        with _opener(base).open(request, timeout=_ANSWER_SECONDS) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as refused:
        raise _refusal(refused) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        proxy = proxy_for(base, os.environ)
        what = f"check the proxy of {proxy}, or name the server in NO_PROXY" if proxy else "start one"
        raise ConnectionError(f"no server answers at {base} ({reason}); {what}, or name it with --url") from None


def _opener(base: str) -> urllib.request.OpenerDirector:
    """Return what asks the server; this very machine is asked through no proxy.

    Raises:
        ConnectionError: a variable of the environment names a proxy that cannot be used.
    """
    if is_loopback(base):
        return urllib.request.build_opener(urllib.request.ProxyHandler({}))
    problem = find_problem(os.environ)
    if problem is not None and problem.variable.upper().endswith("_PROXY"):
        raise ConnectionError(f"the server at {base} cannot be asked: {problem}")
    return urllib.request.build_opener()


def _refusal(refused: urllib.error.HTTPError) -> ServiceError:
    try:
        body = json.load(refused)
        hint = (
            "; set MFLUX_API_KEYS to a key with the scope 'manage'"
            if body["code"] in ("UNAUTHORIZED", "FORBIDDEN")
            else ""
        )
        return by_code(body["code"])(body["error"] + hint, body["details"])
    except (ValueError, KeyError, TypeError):
        return ServiceError(f"the server answered {refused.code}")
    finally:
        refused.close()

"""Asking a running server over HTTP, for commands that its state directory's lock keeps from doing it themselves."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

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
        raise ConnectionError(f"no server answers at {base} ({reason}); {_what_to_do(base)}") from None


def _opener(base: str) -> urllib.request.OpenerDirector:
    """Return what asks the server; this very machine is asked through no proxy.

    Raises:
        ConnectionError: a variable of the environment names a proxy that cannot be used.
    """
    if is_loopback(base):
        return urllib.request.build_opener(urllib.request.ProxyHandler({}))
    variable = _proxy_variable(base)
    problem = None if variable is None else find_problem({variable: os.environ[variable]})
    if problem is not None:
        raise ConnectionError(f"the server at {base} cannot be asked: {problem}")
    return urllib.request.build_opener()


def _proxy_variable(base: str) -> str | None:
    """Return the variable whose proxy the server is asked through; Python's own client knows no ``ALL_PROXY``."""
    parts = urlsplit(base)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return proxy_for(base, {name: value for name, value in os.environ.items() if name.upper() != "ALL_PROXY"})


def _what_to_do(base: str) -> str:
    used, named = _proxy_variable(base), proxy_for(base, os.environ)
    if used is not None:
        return f"check the proxy of {used}, or name the server in NO_PROXY"
    if named is not None:
        scheme = urlsplit(base).scheme
        return (
            f"this command does not use the proxy of {named}: name an HTTP proxy in {scheme}_proxy (http://host:port)"
        )
    return "start one, or name it with --url"


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

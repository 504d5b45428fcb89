"""Asking a running server over HTTP, for commands that its state directory's lock keeps from doing it themselves."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from mflux_api.config import Settings
from mflux_api.errors import ConfigError, by_code
from mflux_api.system.network_variables import find_problem, is_loopback, proxy_for

_ANSWER_SECONDS = 600.0
"""What loading a large model may take."""


def address(settings: Settings) -> str:
    """Return the URL of the server that these settings describe."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.server.host, settings.server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server.port}"


def call(
    settings: Settings,
    url: str | None,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    holds: str = "status",
) -> dict[str, Any]:
    """Send a request and return the JSON object that is answered.

    Args:
        settings: where the server is, and a key for it.
        url: the server, where it is another than the configured one.
        method: of HTTP.
        path: below ``/api/v1/``.
        body: a JSON object to send.
        holds: what the answer has to have.

    Raises:
        ConfigError: ``url`` is not the address of a server.
        ServiceError: the server refused, in its own words.
        ConnectionError: no server answers there, or a variable of the environment keeps it from being asked.
    """
    base = base_url(url) if url else address(settings)
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{base}/api/v1/{path}", method=method, data=data)
    if data is not None:
        request.add_header("Content-Type", "application/json")
    if settings.security.api_keys:
        request.add_header("X-API-Key", settings.security.api_keys[0])
    try:
        with _opener(base).open(request, timeout=_ANSWER_SECONDS) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as refused:
        raise _refusal(refused, base) from None
    except OSError as error:
        raise ConnectionError(f"no server answers at {base} ({_reason(error)}); {_what_to_do(base)}") from None
    except (HTTPException, ValueError):
        answer = None
    if not isinstance(answer, dict) or holds not in answer:
        raise ConnectionError(_is_another(base))
    return answer


def base_url(url: str) -> str:
    """Return the address of a server as it was typed, with what may be left out.

    Raises:
        ConfigError: it is not one.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
        # Reading the port looks at it.
        sound = sound and parts.port != 0 and not (parts.username or parts.query or parts.fragment)
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError("--url is not the address of a server: write http://host:port")
    host = f"[{host}]" if ":" in host else host
    port = "" if parts.port is None else f":{parts.port}"
    # The address of its interface is one that people copy.
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/').removesuffix('/api/v1').rstrip('/')}"


def _reason(error: OSError) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "it took too long"
    reason = getattr(cause, "reason", None) or getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return reason.replace("_", " ").lower() if reason.isupper() else f"{reason[:1].lower()}{reason[1:]}"


def _is_another(base: str, status: int | None = None) -> str:
    if status in (502, 503, 504):
        return f"a proxy answers at {base}, and reaches no server ({status}); start one, or name it with --url"
    said = "" if status is None else f" (it says {status})"
    return f"what answers at {base} is not an mflux-api server{said}; name it with --url"


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


def _refusal(refused: urllib.error.HTTPError, base: str) -> Exception:
    try:
        body = json.load(refused)
        hint = (
            "; set MFLUX_API_KEYS to a key with the scope 'manage'"
            if body["code"] in ("UNAUTHORIZED", "FORBIDDEN")
            else ""
        )
        return by_code(body["code"])(body["error"] + hint, body["details"])
    except (ValueError, KeyError, TypeError):
        return ConnectionError(_is_another(base, refused.code))
    finally:
        refused.close()

"""Asking a running server over HTTP: where ``--url`` says so, or where its lock keeps a command from the disk."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from mflux_api.config import Settings
from mflux_api.errors import ConfigError, Forbidden, Unauthorized
from mflux_api.storage.state_lock import LOCK_NAME, StateInUse, StateLock
from mflux_api.system.network_variables import proxy_for

if TYPE_CHECKING:
    from mflux_api.client import Client, UnexpectedAnswer


def address(settings: Settings) -> str:
    """Return the URL of the server that these settings describe."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.server.host, settings.server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server.port}"


def lock_or_address(settings: Settings, url: str | None, stack: ExitStack) -> str | None:
    """Return the server that a change of the disk goes through, if one runs: it knows what its jobs need.

    Args:
        settings: where the state is.
        url: a server that was named; nothing is locked then.
        stack: holds the lock of the state where no server runs, so that none starts meanwhile.
    """
    if url is None and (settings.state_dir / LOCK_NAME).exists():
        try:
            stack.enter_context(StateLock.from_settings(settings))
        except StateInUse:
            return address(settings)
    return url


def base_url(url: str) -> str:
    """Return the address of a server as it was typed, with what may be left out.

    Raises:
        ConfigError: it is not one.
    """
    from mflux_api.client.address import base_url as read

    try:
        return read(url)
    except ValueError:
        raise ConfigError("--url is not the address of a server: write http://host:port") from None


@contextmanager
def connected(settings: Settings, url: str | None, *, retries: int = 0) -> Iterator["Client"]:
    """Open a client of a server for the length of a block; what goes wrong in it is told with what to do.

    Args:
        settings: where the server is, and a key for it.
        url: the server, where it is another than the configured one.
        retries: how often a call is tried again that may be.

    Raises:
        ConfigError: ``url`` is not the address of a server, or the key cannot be sent.
        ServiceError: the server refused, in its own words.
        ConnectionError: no server answers there, or a variable of the environment keeps it from being asked.
    """
    # A third of a second, which commands without a server do without.
    from mflux_api.client import Client, ServerUnreachable, UnexpectedAnswer

    base = base_url(url) if url else address(settings)
    keys = settings.security.api_keys
    try:
        client = Client(base, api_key=keys[0] if keys else None, retries=retries)
    except ValueError as error:
        raise ConfigError(f"security.api_keys: {error}") from None
    except ServerUnreachable as error:
        raise ConnectionError(f"the server at {base} cannot be asked: {error.reason}") from None
    try:
        with client:
            yield client
    except ServerUnreachable as error:
        raise ConnectionError(f"{error}; {_what_to_do(base)}") from None
    except UnexpectedAnswer as error:
        raise ConnectionError(_is_another(error)) from None
    except (Unauthorized, Forbidden) as error:
        scope = error.details.get("scope")
        needed = f" with the scope '{scope}'" if scope else ""
        raise type(error)(f"{error.message}; set MFLUX_API_KEYS to a key{needed}", error.details) from None


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
    from mflux_api.client import UnexpectedAnswer
    from mflux_api.client.calls import WORK_SECONDS, Call

    with connected(settings, url) as client:
        answer: dict[str, Any] = client.send(
            Call(method=method, path=path, answer=dict, json=body, seconds=WORK_SECONDS)
        )
        if holds not in answer:
            raise UnexpectedAnswer(client.url)
        return answer


def _is_another(error: "UnexpectedAnswer") -> str:
    if error.status in (502, 503, 504):
        return (
            f"a proxy answers at {error.url}, and reaches no server ({error.status}); start one, or name it with --url"
        )
    return f"{error}; name it with --url"


def _what_to_do(base: str) -> str:
    used = proxy_for(base, os.environ)
    if used is not None:
        return f"check the proxy of {used}, or name the server in NO_PROXY"
    return "start one, or name it with --url"

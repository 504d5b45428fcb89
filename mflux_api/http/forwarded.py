"""Where the current request comes from and what its client calls this server, as trusted proxies tell."""

import re
from collections.abc import Mapping
from typing import cast

from quart import current_app, request
from quart_trio import QuartTrio

from mflux_api.access.proxies import TrustedProxies
from mflux_api.http.root_path import ROOT_PATH, RootPath

_PROXIES = "TRUSTED_PROXIES"
"""Key of the app's config."""

_HOST = re.compile(r"[A-Za-z0-9._\-\[\]:%]{1,255}")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~\-]{1,64}){1,8}")
_SCHEMES = frozenset({"http", "https"})


def install(app: QuartTrio, proxies: TrustedProxies) -> None:
    """Have the app's requests know which proxies are trusted."""
    app.config[_PROXIES] = proxies


def client_address() -> str:
    """Return the address of the current request's client; an empty text where the connection has none."""
    peer = request.remote_addr or ""
    headers = request.headers
    return _proxies().client_of(peer, headers.getlist("X-Forwarded-For"), headers.getlist("Forwarded"))


def external_host() -> str:
    """Return the host, with its port, by which the client asked; an empty text where it did not say."""
    return _told("X-Forwarded-Host", "host", _HOST) or request.headers.get("Host", "")


def external_base() -> str:
    """Return what the paths of this server begin with for the client: scheme, host and a proxy's prefix.

    Where the request names no host it is the path alone.
    """
    host, prefix = external_host(), external_prefix()
    if not _HOST.fullmatch(host):
        return prefix
    return f"{external_scheme()}://{host}{prefix}"


def external_prefix() -> str:
    """Return what this server's paths begin with for the client: a proxy's prefix, else ``server.root_path``."""
    root_path = cast("RootPath", current_app.config[ROOT_PATH])
    return _told("X-Forwarded-Prefix", "", _PREFIX) or root_path.prefix


def cookie_path() -> str:
    """Return the path of the client's cookies: what else its host serves under other prefixes gets none."""
    return external_prefix() or "/"


def external_scheme() -> str:
    """Return ``https`` where a trusted proxy took off the TLS, else ``http``."""
    scheme = _told("X-Forwarded-Proto", "proto").lower()
    return scheme if scheme in _SCHEMES else request.scheme


def _told(header: str, parameter: str, form: re.Pattern[str] | None = None) -> str:
    """Return what the nearest client of all trusted proxies asked for; empty where no trusted proxy says it.

    Args:
        header: the one that tells it.
        parameter: that of ``Forwarded``, where there is no such header and no ``X-Forwarded-For``; empty: none.
        form: what counts.
    """
    proxies, peer = _proxies(), request.remote_addr or ""
    if not proxies.trusts(peer):
        return ""
    headers = cast("Mapping[str, str]", request.headers)
    value = headers.get(header, "").partition(",")[0].strip()
    if not value and "X-Forwarded-For" not in request.headers:
        # A proxy that sets the older headers passes its clients' own Forwarded on.
        value = proxies.told_of(peer, request.headers.getlist("Forwarded")).get(parameter, "")
    value = value.rstrip("/")
    return value if form is None or form.fullmatch(value) else ""


def _proxies() -> TrustedProxies:
    return cast("TrustedProxies", current_app.config[_PROXIES])

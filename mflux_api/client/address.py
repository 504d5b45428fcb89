"""The address of a server: as people type it, and which way there is to it."""

import os
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from mflux_api.client.errors import ServerUnreachable
from mflux_api.system.network_variables import find_problem, proxy_for


def base_url(url: str) -> str:
    """Return the address of a server as it was typed, with what may be left out.

    Raises:
        ValueError: it is not one.
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
        raise ValueError("it is not the address of a server: write http://host:port")
    host = f"[{host}]" if ":" in host else host
    port = "" if parts.port is None else f":{parts.port}"
    # The address of its interface is one that people copy.
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/').removesuffix('/api/v1').rstrip('/')}"


def transport_options(base: str) -> Mapping[str, Any]:
    """Return how httpx is to connect there: through the proxy that the environment names, to this machine through none.

    Raises:
        ServerUnreachable: a variable of the environment names a proxy that cannot be used.
    """
    variable = proxy_for(base, os.environ)
    if variable is not None:
        problem = find_problem({variable: os.environ[variable]})
        if problem is not None:
            raise ServerUnreachable(base, str(problem))
    proxy = None if variable is None else os.environ[variable]
    if proxy is not None and "://" not in proxy:
        proxy = f"http://{proxy}"
    # Reading the certificates takes a third of httpx's own start.
    verify: ssl.SSLContext | bool = httpx.create_ssl_context() if base.startswith("https") else False
    return {"proxy": proxy, "verify": verify, "trust_env": False}

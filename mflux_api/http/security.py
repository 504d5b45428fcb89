"""API keys, host names, origins of web pages, and the owner that a request's jobs get."""

import base64
import binascii
import hashlib
import hmac

from quart import Response, request
from quart_trio import QuartTrio

from mflux_api.config import SecuritySettings
from mflux_api.errors import HostNotAllowed, OriginNotAllowed, Unauthorized

OPEN_PATHS = frozenset({"/api/v1/health"})
"""Answered without a key, so that a supervisor or a load balancer needs none."""


def install(app: QuartTrio, security: SecuritySettings, origins: tuple[str, ...]) -> None:
    """Check every request before its route."""

    @app.before_request
    async def check() -> None:
        host = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
        if security.allowed_hosts and host not in security.allowed_hosts:
            raise HostNotAllowed("This host name is not in security.allowed_hosts", {"host": host[:64]})
        if request.method == "OPTIONS":
            # A browser's preflight carries no credentials.
            return
        _check_origin(origins)
        if security.api_keys and request.path not in OPEN_PATHS and offered_key(security.api_keys) is None:
            raise Unauthorized("A valid API key is required: send it as 'Authorization: Bearer KEY'")

    @app.after_request
    async def keep_out_of_caches(response: Response) -> Response:
        # A proxy's cache, or the next user of a browser, gets neither errors nor what belongs to a key.
        if response.status_code >= 400 or (security.api_keys and request.path not in OPEN_PATHS):
            response.headers["Cache-Control"] = "no-store"
        return response


def _check_origin(origins: tuple[str, ...]) -> None:
    """Refuse a page's request from a foreign origin: some content types let it post without a preflight."""
    origin = request.headers.get("Origin")
    if "*" in origins or origin is None or request.method in ("GET", "HEAD") or origin in origins:
        return
    if origin.partition("://")[2] != request.host:
        raise OriginNotAllowed("This page's origin is not in server.cors_origins", {"origin": origin[:128]})


def refuse_foreign_pages(origins: tuple[str, ...]) -> None:
    """Refuse a page's request to manage the service, unless its origin is this server or is listed by name.

    Raises:
        OriginNotAllowed: it comes from another page; ``*`` lists none.
    """
    _check_origin(tuple(origin for origin in origins if origin != "*"))


def owner(keys: tuple[str, ...]) -> str:
    """Return who sends the request: the name of its key, which is made from a digest, else its address."""
    key = offered_key(keys)
    if key is not None:
        return f"key {hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return request.remote_addr or ""


def offered_key(keys: tuple[str, ...]) -> str | None:
    """Return the configured key that the request carries, or ``None``."""
    offered = [_header("X-API-Key")]
    scheme, _, credentials = _header("Authorization").partition(b" ")
    if scheme.lower() == b"bearer":
        offered.append(credentials.strip())
    elif scheme.lower() == b"basic":
        offered += _basic(credentials)
    # An absent header offers nothing, whatever the keys are.
    return next((key for offer in offered if offer for key in keys if hmac.compare_digest(offer, key.encode())), None)


def _header(name: str) -> bytes:
    """Return a header as the bytes that came: a key may have any letters, and strangers send any bytes."""
    return request.headers.get(name, "").encode("latin-1", "replace")


def _basic(credentials: bytes) -> list[bytes]:
    """Return what may be a key: the user name, the password, and ``user:password`` as a whole."""
    try:
        pair = base64.b64decode(credentials, validate=True)
    except binascii.Error:
        return []
    user, _, password = pair.partition(b":")
    return [pair, user, password]

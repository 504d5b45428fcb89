"""Who sends the current request, for what each of A1111's clients has of its own: its options, its interrupt."""

import hashlib
import re
import secrets

from quart import Response, request

from mflux_api.access.addresses import client_of
from mflux_api.http.forwarded import client_address, cookie_path, external_scheme
from mflux_api.http.security.guard import caller, from_foreign_page

COOKIE = "mflux_client"
_VALUE = re.compile(r"[0-9a-f]{32}")
_SECONDS = 365 * 24 * 3600


def client_id() -> str:
    """Return the key's owner, else the cookie that this server handed out, else the address."""
    who = caller()
    if who.key is not None:
        return who.owner
    return cookie_id() or address_id()


def address_id() -> str:
    """Return the client by its address alone: one that keeps no cookies is this one, with or without one."""
    return f"address {client_of(client_address())}"


def cookie_id() -> str | None:
    """Return the client by its cookie; ``None`` without one. A page of another origin has none."""
    value = request.cookies.get(COOKIE, "")
    if not _VALUE.fullmatch(value) or from_foreign_page():
        return None
    return _named(value)


def hand_out_cookie(response: Response) -> str:
    """Give a client that has none a cookie, and return who it is from now on if it keeps it."""
    value = secrets.token_hex(16)
    response.set_cookie(
        COOKIE,
        value,
        max_age=_SECONDS,
        httponly=True,
        samesite="Lax",
        secure=external_scheme() == "https",
        path=cookie_path(),
    )
    return _named(value)


def _named(value: str) -> str:
    """Return what a cookie's client is called here; the cookie cannot be made of it."""
    return f"cookie {hashlib.sha256(value.encode()).hexdigest()[:16]}"

"""What a request's headers offer as a key. Strangers send any bytes: none of them is an error, only not a key."""

import base64
import binascii
from collections.abc import Sequence

import attrs

MAX_OFFERS = 8
"""Secrets that are looked at: a client sends one, in one or two headers."""


@attrs.frozen(kw_only=True)
class Offers:
    """The secrets of a request, none of them empty."""

    by_program: tuple[bytes, ...] = attrs.field(default=(), repr=False)
    """From ``Authorization: Bearer`` and ``X-API-Key``: a browser sends these only where a page's own code does."""
    by_browser: tuple[bytes, ...] = attrs.field(default=(), repr=False)
    """From ``Authorization: Basic``: a browser sends these again with every request, whichever page makes it."""

    malformed: bool = False
    """Whether there is a Basic header that cannot be read."""

    def __bool__(self) -> bool:
        return bool(self.by_program or self.by_browser or self.malformed)


def read_offers(api_keys: Sequence[str], authorizations: Sequence[str]) -> Offers:
    """Return what the values of ``X-API-Key`` and ``Authorization`` offer; empty ones and bare schemes do nothing."""
    program = [_bytes(value).strip() for value in api_keys]
    browser: list[bytes] = []
    malformed = False
    for value in authorizations:
        scheme, _, credentials = _bytes(value).strip().partition(b" ")
        if scheme.lower() == b"bearer":
            program.append(credentials.strip())
        elif scheme.lower() == b"basic":
            try:
                browser += _basic(credentials.strip())
            except (binascii.Error, ValueError):
                malformed = True
    return Offers(
        by_program=tuple(filter(None, program))[:MAX_OFFERS],
        by_browser=tuple(filter(None, browser))[:MAX_OFFERS],
        malformed=malformed,
    )


def _bytes(value: str) -> bytes:
    """Return a header's value as the bytes that came: a key may have any letters."""
    return value.encode("latin-1", "replace")


def _basic(credentials: bytes) -> list[bytes]:
    """Return what may be a key: the user name, the password, and ``user:password`` as a whole."""
    pair = base64.b64decode(credentials, validate=True)
    user, colon, password = pair.partition(b":")
    if not user and not password:
        return []
    return [user, password, pair] if colon else [user]

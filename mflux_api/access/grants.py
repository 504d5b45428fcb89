"""Tokens that stand for a key for one purpose and for a while: a session, a ticket of one job, a signed path.

A token says until when and whose, and carries a MAC (RFC 2104, SHA-256) over that, its purpose and the key's digest. So
it ends with its time, with its key and with the secret, and nothing is kept of it here.
"""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Final

from mflux_api.access.keys import Key, KeyRing

SECRET_BYTES: Final = 32
MAX_TOKEN: Final = 128
_MAC_BYTES: Final = 24
_TAG_DIGITS: Final = 8
_MAX_DIGITS: Final = 12


class Grants:
    """Makes tokens, and says whose they are."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        """Take the secret.

        Args:
            secret: at least :data:`SECRET_BYTES` random bytes; a program that has it can make tokens.
            clock: seconds since the epoch: a token may outlive the process.
        """
        self._secret = secret
        self._clock = clock

    @property
    def name(self) -> str:
        """A name that only services with the same secret have; it tells nothing of the secret."""
        return hmac.digest(self._secret, b"name", "sha256")[:4].hex()

    def issue(self, purpose: str, key: Key, seconds: float) -> tuple[str, int]:
        """Return a token for a purpose, and when it ends in seconds since the epoch."""
        expires = int(self._clock() + seconds)
        return f"{expires}.{_tag(key)}.{self._mac(purpose, key, expires)}", expires

    def holder(self, purpose: str, token: str, keys: KeyRing) -> Key | None:
        """Return the key that a token stands for; ``None`` where it is none, of another purpose, or has ended."""
        if len(token) > MAX_TOKEN or not token.isascii() or token.count(".") != 2:
            return None
        expires, tag, mac = token.split(".")
        if not expires.isdigit() or len(expires) > _MAX_DIGITS or int(expires) <= self._clock():
            return None
        for key in keys.keys:
            if hmac.compare_digest(tag, _tag(key)) and hmac.compare_digest(mac, self._mac(purpose, key, int(expires))):
                return key
        return None

    def _mac(self, purpose: str, key: Key, expires: int) -> str:
        # Neither a purpose nor what is before it holds a line feed.
        text = f"{expires}\n{key.digest.hex()}\n{purpose}".encode()
        mac = hmac.digest(self._secret, text, "sha256")[:_MAC_BYTES]
        return base64.urlsafe_b64encode(mac).decode()


def new_secret() -> bytes:
    """Return a random secret."""
    return secrets.token_bytes(SECRET_BYTES)


def _tag(key: Key) -> str:
    """Return what says whose a token is, to find the key quickly: a digest of its digest."""
    return hashlib.sha256(key.digest).hexdigest()[:_TAG_DIGITS]

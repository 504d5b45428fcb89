"""Signatures after Standard Webhooks (standardwebhooks.com): the receiver knows who sent a message, and when."""

import base64
import binascii
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from mflux_api.config import WebhookSettings
from mflux_api.errors import ConfigError
from mflux_api.system.regular_files import FileTooLarge, NotRegularFile, open_regular

PREFIX: Final = "whsec_"
MIN_BYTES, MAX_BYTES = 24, 64
"""The specification's limits of a secret."""
MOST_SECRETS: Final = 4
_MAX_FILE_BYTES: Final = 4096
_HOW: Final = f"expected '{PREFIX}' and base64 of {MIN_BYTES} to {MAX_BYTES} random bytes (`openssl rand -base64 32`)"


@attrs.frozen
class Signer:
    """Signs with one secret, or with several while receivers go over to a new one."""

    _secrets: tuple[bytes, ...] = attrs.field(repr=False)

    def headers(self, message_id: str, timestamp: int, body: bytes) -> Mapping[str, str]:
        """Return the headers that identify and sign a message.

        Args:
            message_id: the same in every attempt, so that a receiver knows what it has already.
            timestamp: of this attempt, in seconds since the epoch.
            body: the bytes that are sent.
        """
        signed = f"{message_id}.{timestamp}.".encode() + body
        digests = (hmac.digest(secret, signed, "sha256") for secret in self._secrets)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests),
        }


def read_signer(settings: WebhookSettings) -> Signer | None:
    """Return what signs; ``None`` where webhooks are off. It may wait for the disk.

    Raises:
        ConfigError: there is no secret, or it cannot be used.
    """
    if not settings.enabled:
        return None
    if settings.secret is not None:
        return _signer(settings.secret, "webhooks.secret")
    if settings.secret_file is None:
        raise ConfigError(f"webhooks.enabled needs webhooks.secret or webhooks.secret_file: {_HOW}")
    where = f"webhooks.secret_file ({settings.secret_file.name})"
    return _signer(_read(settings.secret_file, where), where)


def _signer(text: str, where: str) -> Signer:
    secrets = tuple(_decode(each, where) for each in text.split())
    if not 0 < len(secrets) <= MOST_SECRETS:
        raise ConfigError(f"{where}: has {len(secrets)} secrets, expected 1 to {MOST_SECRETS}; {_HOW}")
    return Signer(secrets)


def _decode(text: str, where: str) -> bytes:
    try:
        if not text.startswith(PREFIX):
            raise ValueError("no prefix")
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (ValueError, binascii.Error):
        raise ConfigError(f"{where}: is not a secret; {_HOW}") from None
    if not MIN_BYTES <= len(secret) <= MAX_BYTES:
        raise ConfigError(f"{where}: has {len(secret)} bytes; {_HOW}")
    return secret


def _read(path: Path, where: str) -> str:
    try:
        with open_regular(path, _MAX_FILE_BYTES) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"{where}: its mode is {mode:o}, so other users can reach it; run `chmod 600` on it")
            return file.read(_MAX_FILE_BYTES).decode("ascii", "replace").strip()
    except (NotRegularFile, FileTooLarge):
        raise ConfigError(f"{where}: is not a file with one secret; {_HOW}") from None
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file; {_HOW}") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None

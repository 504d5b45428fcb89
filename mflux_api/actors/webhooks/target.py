"""The address of a webhook, checked as far as that can be done without asking the network."""

from typing import Final
from urllib.parse import SplitResult, urlsplit

import attrs

from mflux_api.actors.webhooks.public_addresses import ends_in_a_number, is_public, parse
from mflux_api.errors import InvalidParameter

FIELD: Final = "webhook"
_PORTS: Final = {"http": 80, "https": 443}
_LOOPBACK: Final = "localhost"
_MAX_HOST: Final = 253
_MAX_LABEL: Final = 63
_LABEL: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


@attrs.frozen(kw_only=True)
class Target:
    """Where to connect to, and what to ask there."""

    tls: bool
    host: str
    """A name in lower case, or an address without brackets."""
    port: int
    path: str = attrs.field(repr=False)
    """With the query; it may hold a secret of the receiver's."""

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS["https" if self.tls else "http"] else f"{host}:{self.port}"


def read_target(url: str, *, allow_private: bool) -> Target:
    """Return what a URL means.

    Args:
        url: what a request has.
        allow_private: whether it may be an address that is not public.

    Raises:
        InvalidParameter: it is not such a URL, or certainly leads to an address that is not public.
    """
    parts = _split(url)
    host = (parts.hostname or "").removesuffix(".")
    address = parse(host)
    if address is None and (ends_in_a_number(host) or not _is_name(host)):
        raise _invalid("a host name in ASCII, or an IP address in its usual form")
    loopback = host == _LOOPBACK or host.endswith(f".{_LOOPBACK}")
    if not allow_private and (loopback or (address is not None and not is_public(address))):
        raise _invalid("a public address (webhooks.allow_private_addresses)")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    tls = parts.scheme == "https"
    return Target(tls=tls, host=host, port=_port(parts), path=path)


def _split(url: str) -> SplitResult:
    # Also what urlsplit would take out silently, such as line feeds.
    if not all("!" <= character <= "~" for character in url) or "\\" in url:
        raise _invalid("printable ASCII without blanks; percent-encode the rest")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _invalid("a URL such as https://example.com/hook") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise _invalid("a URL that begins with https:// or http://")
    if "@" in parts.netloc:
        raise _invalid("a URL without a user name or password; put a secret into its path")
    return parts


def _port(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise _invalid("a port from 1 to 65535")
    return port or _PORTS[parts.scheme]


def _is_name(host: str) -> bool:
    labels = host.split(".")
    fitting = all(0 < len(label) <= _MAX_LABEL and _LABEL.issuperset(label) for label in labels)
    return len(host) <= _MAX_HOST and fitting


def _invalid(expected: str) -> InvalidParameter:
    # The URL itself may hold a secret, so no error repeats it.
    return InvalidParameter.for_field(FIELD, f"is invalid: expected 'url' to be {expected}", limit=expected)

"""Host names that the service answers to: DNS rebinding makes a page's own name lead here, and only Host tells."""

import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

EVERY_HOST = "*"

_NAME = re.compile(r"[a-z0-9._-]+")
_MAX_TABLE = 64 * 1024
"""Characters of the table of hosts: this machine's own line is among the first; lists of blocked names are longer."""
_DOTLESS = re.compile(r"[a-z0-9_-]+")

_URL = re.compile("^https?://")

# Names that no one can register, so that no page from elsewhere has them: RFC 6761, RFC 6762, RFC 8375, ICANN's
# reservation of .internal, and .lan, which home routers use.
_PRIVATE = (".local", ".localhost", ".internal", ".home.arpa", ".lan")


def name_in(host: str) -> str:
    """Return the name or address in a Host header: without port, brackets and final dot, in lower case.

    What has no reading is returned as an empty string.
    """
    if host.startswith("["):
        address, bracket, port = host[1:].partition("]")
        return address.lower() if bracket and (not port or port.startswith(":")) else ""
    name, _, port = host.partition(":")
    return "" if ":" in port else name.removesuffix(".").lower()


class HostRules:
    """Which hosts are answered: those that no stranger's page can have, this machine's own, and listed ones."""

    def __init__(self, allowed: Iterable[str], *, own: Iterable[str] = ()) -> None:
        """Take the names of the settings (``.example.com`` has its subdomains with it) and this machine's own."""
        names = [name for name in map(_canonical, (*allowed, *own)) if name]
        self.every = EVERY_HOST in names
        """Whether every name is answered."""
        self._exact = frozenset(name.removeprefix(".") for name in names)
        self._suffixes = tuple(name for name in names if name.startswith("."))

    def allow(self, host: str) -> bool:
        """Whether a Host header is answered."""
        name = name_in(host)
        if self.every:
            return True
        if not name or name.startswith("."):
            return False
        return (
            name in self._exact
            or _DOTLESS.fullmatch(name) is not None
            or _is_address(name)
            or (_NAME.fullmatch(name) is not None and name.endswith((*_PRIVATE, *self._suffixes)))
        )


def own_names(table: Path = Path("/etc/hosts")) -> tuple[str, ...]:
    """Return this machine's name and, where its table of hosts has them, its other ones; no name server is asked."""
    own = socket.gethostname()
    try:
        lines = table.read_text("utf-8", "replace")[:_MAX_TABLE].splitlines()
    except OSError:
        return (own,)
    aliases = (line.partition("#")[0].split()[1:] for line in lines)
    return tuple(dict.fromkeys((own, *(name for names in aliases if own in names for name in names))))


def _is_address(name: str) -> bool:
    """Whether it is an IP address as browsers write it; they turn all other spellings into this one."""
    try:
        # A zone is written `%25eth0` in a URL (RFC 6874).
        IPv6Address(name.replace("%25", "%", 1)) if ":" in name else IPv4Address(name)
    except ValueError:
        return False
    return True


def _canonical(name: str) -> str:
    """Return a name of the settings as Host headers have it: international names in their ASCII form.

    What has no reading is returned as an empty string, which is not a host.
    """
    # Some write the whole URL.
    plain = _URL.sub("", name.strip().lower()).rstrip("/")
    if plain == EVERY_HOST:
        return plain
    plain = plain.removeprefix("*")
    if EVERY_HOST in plain:
        return ""
    plain = name_in(plain) if plain.count(":") == 1 or plain.startswith("[") else plain.removesuffix(".")
    try:
        dot = "." if plain.startswith(".") else ""
        return plain if plain.isascii() else dot + plain.removeprefix(".").encode("idna").decode()
    except UnicodeError:
        return plain

"""Where a web page's request comes from: this server's own page, one that the settings name, or a foreign one."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

import attrs

EVERY_ORIGIN = "*"
NULL_ORIGIN = "null"
"""The origin of pages that have none or hide it: every page can, in a frame with ``sandbox``."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._~\[\]:-]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FOREIGN_SITES = frozenset({"cross-site", "same-site"})
"""Values of Sec-Fetch-Site: a page of a sibling domain is foreign, too."""


@attrs.frozen(kw_only=True)
class PageHeaders:
    """What a browser says of the page that sends a request. A page cannot change these headers."""

    host: str
    origin: str | None
    fetch_site: str | None

    @property
    def foreign(self) -> bool:
        """Whether a page of another origin sends it; ``null`` is one, and what is not a page is not."""
        if (self.fetch_site or "").strip().lower() in _FOREIGN_SITES:
            return True
        return self.origin is not None and not _same(self.origin, self.host)


class OriginRules:
    """The origins of ``server.cors_origins``."""

    def __init__(self, origins: Iterable[str]) -> None:
        listed = frozenset(_canonical(origin) for origin in origins)
        self.every = EVERY_ORIGIN in listed
        self._null = NULL_ORIGIN in listed
        self.named = frozenset(origin for origin in listed if _ORIGIN.fullmatch(origin))
        """Those that are listed by name."""
        self.mistakes = tuple(sorted(listed - self.named - {EVERY_ORIGIN, NULL_ORIGIN}))
        """What is listed and no browser sends: without a scheme, with a path, with ``*`` in it."""

    @property
    def any_page(self) -> bool:
        """Whether every page is allowed, by ``*`` or because it can be ``null``."""
        return self.every or self._null

    def names(self, origin: str | None) -> bool:
        """Whether an origin is listed by name; ``null`` stands for any page, and never is."""
        return origin is not None and _canonical(origin) in self.named

    def allows(self, origin: str | None) -> bool:
        """Whether pages of an origin may generate, and read the answers."""
        return self.every or self.names(origin) or (self._null and origin == NULL_ORIGIN)


def _same(origin: str, host: str) -> bool:
    """Whether an origin is this server's, as far as its host and port tell: a proxy may have taken off the TLS."""
    theirs = _authority(origin)
    scheme = origin.partition("://")[0].lower()
    return theirs is not None and theirs == _authority(f"{scheme}://{host}")


def _authority(url: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    default = _DEFAULT_PORTS.get(parts.scheme.lower())
    # An origin has no path; what looks like one may be read in another way elsewhere.
    if default is None or not parts.hostname or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    return parts.hostname.lower().removesuffix("."), default if port is None else port


def _canonical(origin: str) -> str:
    """Return an origin as browsers write it: lower case, no final slash, no port that is the scheme's own."""
    plain = origin.strip().rstrip("/").lower()
    scheme = plain.partition("://")[0]
    return plain.removesuffix(f":{_DEFAULT_PORTS[scheme]}") if scheme in _DEFAULT_PORTS else plain

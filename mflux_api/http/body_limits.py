"""How large a request's body may be: by the route that will get it, however its path is spelled."""

from collections.abc import Mapping
from typing import Final

import attrs
from quart_trio.wrappers.request import TrioBody
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map

from mflux_api.errors import BodyTooLarge

LIMITS = "BODY_LIMITS"
"""Key of the app's config: its :class:`BodyLimits`."""

SMALL_BODY_BYTES: Final = 256 * 1024
"""Bodies of routes that expect no image and no file."""
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})


@attrs.frozen
class BodyLimit:
    """What a route takes."""

    most: int
    """Bytes of a body; 0: none is read."""
    streams: bool = False
    """Whether it is read while it comes, as a file is."""


_NONE: Final = BodyLimit(0)
_SMALL: Final = BodyLimit(SMALL_BODY_BYTES)


def too_large(limit: int, when: str = "") -> BodyTooLarge:
    """Return the error for a body that is over its limit.

    Args:
        limit: how many bytes it may have.
        when: what makes it so large, where it is not what was sent.
    """
    size = f"{limit // 2**20} MB" if limit >= 2**20 else f"{limit // 2**10} KB"
    return BodyTooLarge(f"The request's body is over {size}{when}", {"limit_bytes": limit})


class BodyLimits:
    """The limits of an app's routes; a route without one of its own takes a small body."""

    def __init__(self, routes: Map, limits: Mapping[tuple[str, str], BodyLimit]) -> None:
        """Find the routes.

        Args:
            routes: the app's.
            limits: by method and path, as the route names it.
        """
        self._routes = routes.bind("")
        found = {self._endpoint(method, path): limit for (method, path), limit in limits.items()}
        if None in found:
            raise LookupError(f"a limit for a route that is not there: {sorted(limits)}")
        self._limits = found

    def of(self, method: str, path: str) -> BodyLimit:
        """Return the limit of a request, also where no route takes it."""
        return _NONE if method in _WITHOUT_BODY else self._limits.get(self._endpoint(method, path), _SMALL)

    def _endpoint(self, method: str, path: str) -> str | None:
        try:
            endpoint, _ = self._routes.match(path, method)
        except HTTPException:
            return None
        return str(endpoint)


class IgnoredBody(TrioBody):
    """A body that no route reads: nothing of it is kept."""

    def append(self, data: bytes) -> None:
        """Throw it away."""

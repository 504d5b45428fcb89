"""``server.root_path``: what the paths of this server begin with for its clients, where a proxy does not say it.

A proxy may take the prefix off, or pass paths on as they are; both reach the same routes.
"""

from typing import Final

from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import Map

ROOT_PATH: Final = "MFLUX_ROOT_PATH"
"""Key of the app's config: its :class:`RootPath`."""


class RootPath:
    """The prefix of one app."""

    def __init__(self, prefix: str, routes: Map) -> None:
        """Take the prefix.

        Args:
            prefix: what the settings say, without a slash at its end; empty where there is none.
            routes: the app's.
        """
        self.prefix = prefix
        self._routes = routes.bind("")

    def strip(self, path: str) -> str:
        """Return the path as the routes have it.

        One that is a route as it is stays: a proxy took the prefix off already, and ``/api`` may be the prefix.
        """
        if not self.prefix or not path.startswith(f"{self.prefix}/") or self._is_route(path):
            return path
        return path.removeprefix(self.prefix)

    def _is_route(self, path: str) -> bool:
        try:
            self._routes.match(path)
        except MethodNotAllowed:
            return True
        except HTTPException:
            return False
        return True

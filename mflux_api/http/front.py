"""The HTTP front: Hypercorn and the Quart app as one supervised child, and a leaf of the tree."""

import socket
from collections.abc import Callable, Sequence

import trio

from mflux_api.access.access import Access
from mflux_api.access.proxies import TrustedProxies
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.app import create_app
from mflux_api.http.open_connections import connection_limits
from mflux_api.http.server import ServerOptions, serve
from mflux_api.supervisor import Started


class HttpFront:
    """Serves the REST API on sockets that outlive it, so a restart refuses no connection."""

    def __init__(
        self, gateway: Gateway, access: Access, sockets: Sequence[socket.socket], end_by: Callable[[], float]
    ) -> None:
        """Take the sockets to serve on.

        Args:
            gateway: what the routes ask.
            access: the keys.
            sockets: listening sockets, which stay open when the front ends.
            end_by: returns until when answers may be sent once the front ends, in Trio's time; called at its end.
        """
        self._gateway = gateway
        self._access = access
        self._sockets = sockets
        self._end_by = end_by

    async def run(self, status: Started) -> None:
        """Serve until cancelled; reports the URLs."""
        settings = self._gateway.settings.server
        options = ServerOptions(limits=connection_limits(settings), proxies=TrustedProxies(settings.trusted_proxies))
        await serve(
            create_app(self._gateway, self._access),
            self._sockets,
            drain=trio.Event(),
            config=options,
            end_by=self._end_by,
            task_status=status,
        )

"""The connections of one server: how many there may be, of one address too, and which gives way to a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import attrs
from attrs.validators import ge

from mflux_api.config import ServerSettings
from mflux_api.errors import ServerBusy, ServiceError, TooManyConnections
from mflux_api.system.descriptors import descriptor_limit

_OTHER_DESCRIPTORS: Final = 192
"""What is kept for everything but connections: database, images, uploads, pipes to children, clients being refused."""

_MOST_CONNECTIONS: Final = 4096
"""Beyond this many each would have less than its share of one processor; 1,000 followers take 44 MB."""


@attrs.frozen(kw_only=True)
class ConnectionLimits:
    """How many connections a server has at one time."""

    total: int = attrs.field(validator=ge(1))
    per_address: int = attrs.field(validator=ge(1))


_DEFAULTS: Final = ServerSettings()


def connection_limits(settings: ServerSettings = _DEFAULTS) -> ConnectionLimits:
    """Return the settings' limits, and where they have none what the process's limit of open files allows."""
    total = settings.max_connections
    if total is None:
        total = max(16, min(_MOST_CONNECTIONS, descriptor_limit() - _OTHER_DESCRIPTORS))
    per_address = settings.max_connections_per_address
    return ConnectionLimits(total=total, per_address=max(1, total // 2) if per_address is None else per_address)


class OpenConnections:
    """Every connection of a server, by the address of its client.

    A connection that waits for a request, or for the rest of a request's head, gives way to a new one when there is no
    room: the one that has waited longest. So clients that only open connections keep no other client out.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._all = _Group()
        self._addresses: dict[str, _Group] = {}

    def __len__(self) -> int:
        return len(self._all.places)

    def refusal(self, address: str, *, shared: bool = False) -> ServiceError | None:
        """Make room for one more connection; return why there is none.

        Args:
            address: the client's, as :func:`~mflux_api.access.addresses.client_of` gives it.
            shared: whether the address is that of many clients, so that only the limit of all counts.
        """
        own = self._addresses.get(address, _Group())
        if not shared and len(own.places) >= self._limits.per_address and not _close_oldest(own):
            return TooManyConnections(
                f"{self._limits.per_address} connections of your address are open "
                "(server.max_connections_per_address); close some, or use them again"
            )
        if len(self) >= self._limits.total and not _close_oldest(self._all):
            return ServerBusy(
                f"{self._limits.total} connections are open (server.max_connections); try again in a moment"
            )
        return None

    @contextmanager
    def place(self, address: str, close: Callable[[], None]) -> Iterator[Place]:
        """Count a connection while the block lasts.

        Args:
            address: the client's, as :func:`~mflux_api.access.addresses.client_of` gives it.
            close: ends the connection, soon; called when it has to give way.
        """
        own = self._addresses.setdefault(address, _Group())
        place = Place((self._all, own), close)
        try:
            yield place
        finally:
            place.leave()
            if not own.places and self._addresses.get(address) is own:
                del self._addresses[address]

    def close_oldest(self) -> bool:
        """Close the connection that has waited longest; return whether there is one."""
        return _close_oldest(self._all)


@attrs.define(eq=False)
class _Group:
    """Connections that have a limit together."""

    places: set[Place] = attrs.field(factory=set)
    waiting: dict[Place, None] = attrs.field(factory=dict)
    """Those that wait for a request, the longest first."""


class Place:
    """One connection among the others of its server."""

    def __init__(self, groups: tuple[_Group, ...], close: Callable[[], None]) -> None:
        self._groups = groups
        self._close = close
        for group in groups:
            group.places.add(self)
        self.wait_for_request()

    @property
    def open(self) -> bool:
        """Whether it still counts."""
        return self in self._groups[0].places

    def wait_for_request(self) -> None:
        """Say that the connection has nothing to do, and may give way."""
        for group in self._groups:
            if self in group.places:
                group.waiting.pop(self, None)
                group.waiting[self] = None

    def serve_request(self) -> None:
        """Say that the connection has a request."""
        for group in self._groups:
            group.waiting.pop(self, None)

    def leave(self) -> None:
        """Count the connection no longer; again, it does nothing."""
        self.serve_request()
        for group in self._groups:
            group.places.discard(self)

    def give_way(self) -> None:
        """Close the connection; its place is free at once."""
        self.leave()
        self._close()


def _close_oldest(group: _Group) -> bool:
    for oldest in group.waiting:
        oldest.give_way()
        return True
    return False

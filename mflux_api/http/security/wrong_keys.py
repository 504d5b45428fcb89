"""Wrong keys are slowed and logged, per address, in bounded memory; a request with a valid key never comes here."""

import logging
from collections import OrderedDict

import attrs
import trio

from mflux_api.access.addresses import client_of
from mflux_api.errors import TooManyWrongKeys

FREE = 10
"""Wrong keys of an address in a minute that are answered at once: a mistyped configuration with its retries."""
MINUTE = 60.0
WAIT_SECONDS = 2.0
"""How long the answer to a further one takes, from half of it on; longer keeps a connection for a guess that fails."""
_GOLDEN = 0.618033988749895
"""Multiples of the golden ratio, without their whole parts, are spread evenly however many there are (Knuth, 6.4)."""
MAX_WAITING = 1024
MAX_WAITING_OF_ADDRESS = 128
"""A connection that waits costs no more than one that is idle, and a flood of them that does not wait keeps the event
loop busy: 100 connections at full speed made health take a second, waiting ones do not show."""
MAX_ADDRESSES = 1024
MAX_LINES = 20
"""Lines in the log in a minute, for all addresses."""

logger = logging.getLogger("mflux_api")


@attrs.define
class _Address:
    left: float = FREE
    """Wrong keys that may follow at once; it fills up again within a minute."""
    seen: float = 0.0
    waiting: int = 0
    unlogged: int = 0
    logged: float = float("-inf")


class WrongKeys:
    """Counts wrong keys by address. It belongs to one app, and its times are Trio's."""

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self._waiting = 0
        self._spread = 0.0
        self._minute = float("-inf")
        self._lines = 0
        self._flushed = float("-inf")

    def flush(self) -> None:
        """Log what is older than a minute and not told yet; any request may call it, at next to no cost."""
        now = trio.current_time()
        if now - self._flushed < MINUTE:
            return
        self._flushed = now
        for network, entry in self._addresses.items():
            if entry.unlogged:
                self._log(network, entry, now)

    async def note(self, address: str) -> None:
        """Note one, and wait where there were many before: hold nothing scarce meanwhile.

        Raises:
            TooManyWrongKeys: so many wait already that this one is answered at once.
        """
        now = trio.current_time()
        network = client_of(address)
        entry = self._addresses.setdefault(network, _Address(seen=now))
        self._addresses.move_to_end(network)
        self._forget()
        entry.left = min(FREE, entry.left + (now - entry.seen) * FREE / MINUTE)
        entry.seen = now
        entry.unlogged += 1
        self._log(network, entry, now)
        if entry.left >= 1:
            entry.left -= 1
            return
        if self._waiting >= MAX_WAITING or entry.waiting >= MAX_WAITING_OF_ADDRESS:
            raise TooManyWrongKeys("Too many requests with a wrong API key came from this address; check the key")
        entry.waiting += 1
        self._waiting += 1
        try:
            await trio.sleep(self._next_wait())
        finally:
            entry.waiting -= 1
            self._waiting -= 1

    def _next_wait(self) -> float:
        """Return how long the next one waits: not all alike, or a crowd that came together would come back as one."""
        self._spread = (self._spread + _GOLDEN) % 1.0
        return WAIT_SECONDS * (1.0 - self._spread / 2)

    def _forget(self) -> None:
        """Keep the table small; of an address that waits the entry may go, too: it only counts."""
        while len(self._addresses) > MAX_ADDRESSES:
            self._addresses.popitem(last=False)

    def _log(self, network: str, entry: _Address, now: float) -> None:
        if now - entry.logged < MINUTE:
            return
        if now - self._minute >= MINUTE:
            self._minute, self._lines = now, 0
        self._lines += 1
        if self._lines > MAX_LINES:
            return
        logger.warning(
            "address %s: %d request(s) with a wrong API key since its last such line", network, entry.unlogged
        )
        entry.logged, entry.unlogged = now, 0

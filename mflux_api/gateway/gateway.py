"""The gateway: all that routes and embedding programs may ask of the actors, in one place."""

from contextlib import suppress

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone
from mflux_api.catalog import Catalog
from mflux_api.config import Settings
from mflux_api.errors import ServiceRestarting
from mflux_api.gateway.bulk_cancel import BulkCancel
from mflux_api.gateway.bytes_in_flight import BytesInFlight, default_limit
from mflux_api.gateway.images import Images
from mflux_api.gateway.listings import Listings
from mflux_api.gateway.loras import Loras
from mflux_api.gateway.measurements import Monitoring
from mflux_api.gateway.questions import RETRY_SECONDS, Addresses
from mflux_api.gateway.submission import Submission
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.storage.repository import Totals


class Gateway(Submission, BulkCancel, Images, Listings, Loras, Monitoring):
    """The questions of all parts, and those about the service as a whole."""

    def __init__(self, addresses: Addresses, settings: Settings, catalog: Catalog, checkpoints: Checkpoints) -> None:
        super().__init__(addresses, settings, catalog, checkpoints)
        limit = settings.server.max_in_flight_mb
        self.in_flight = BytesInFlight(default_limit() if limit is None else limit * 2**20)

    async def totals(self) -> Totals:
        """Return the running counters of the store."""
        return await self._ask(self._to.store, m.GetTotals())

    async def drain(self, *, halt: bool = False) -> None:
        """Take no new work, and wait until nothing runs any more; with ``halt`` stop what runs.

        Then the streams of jobs that go on at the next start end.
        """
        while True:
            try:
                await self._ask(self._to.scheduler, m.Drain(halt=halt), control=True)
            except ServiceRestarting:
                # A scheduler that was restarted still takes no new work, but has forgotten who waits for its rest.
                await trio.sleep(RETRY_SECONDS)
            else:
                break
        await self._drain_webhooks(halt)
        with suppress(ActorGone):
            # Behind the terminal events of what has just ended, so not in the control lane.
            await self._to.hub.tell(m.EndStreams())

    async def _drain_webhooks(self, halt: bool) -> None:
        """Begin no more deliveries, and let those under way end; what is left is due at the next start."""
        if self._to.webhooks is None:
            return
        message = m.DrainDeliveries()
        if halt:
            self._to.webhooks.tell_lossy(message, control=True)
            return
        with suppress(ActorGone):
            await self._to.webhooks.ask(message, control=True)

"""What monitoring reads of all actors at one moment; one that does not answer leaves its part out."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.errors import ServiceRestarting, ShuttingDown
from mflux_api.gateway.models import EngineView, Models

ANSWER_SECONDS = 5.0
"""How long the actors may take; a scrape of Prometheus has ten seconds by default."""

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Measurements:
    """The service at one moment; ``None`` is a part that was not answered."""

    counters: m.Counters | None
    status: m.SchedulerStatus | None
    engines: tuple[EngineView, ...] | None
    followers: int | None
    webhooks: int | None
    """Webhooks that are still to be delivered."""

    @property
    def unanswered(self) -> int:
        """How many parts there are no answers for."""
        return [self.counters, self.status, self.engines, self.followers, self.webhooks].count(None)


class Monitoring(Models):
    """Measuring the service, and counting what its clients ask for."""

    async def status(self) -> m.SchedulerStatus:
        """Return how busy the scheduler is."""
        # The scheduler answers one question in each turn of the loop: health would wait for all those of a crowd.
        return await self._ask(self._to.scheduler, m.GetStatus(), control=True)

    async def counters(self) -> m.Counters:
        """Return the counters of this process."""
        return await self._ask(self._to.stats, m.GetCounters())

    async def measurements(self) -> Measurements:
        """Return the service as it is now, whichever of its actors do not answer."""
        counters, status = _Answer(self.counters), _Answer(self.status)
        engines, followers = _Answer(self.engines), _Answer(self._followers)
        webhooks = _Answer(self._webhooks)
        with trio.move_on_after(ANSWER_SECONDS):
            async with trio.open_nursery() as nursery:
                for answer in (counters, status, engines, followers, webhooks):
                    nursery.start_soon(answer.wait)
        return Measurements(
            counters=counters.value,
            status=status.value,
            engines=engines.value,
            followers=followers.value,
            webhooks=webhooks.value,
        )

    async def _followers(self) -> int:
        return await self._ask(self._to.hub, m.CountFollowers())

    async def _webhooks(self) -> int:
        return (await self._ask(self._to.store, m.CountDeliveries(owner=""))).in_all

    def count_request(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request that was answered."""
        self._to.stats.tell_lossy(m.RequestAnswered(method=method, route=route, status=status, seconds=seconds))


@attrs.define
class _Answer(Generic[T]):
    """What is answered to a question; ``None`` until it is, or where its actor is gone."""

    question: Callable[[], Awaitable[T]]
    value: T | None = None

    async def wait(self) -> None:
        with suppress(ServiceRestarting, ShuttingDown):
            self.value = await self.question()

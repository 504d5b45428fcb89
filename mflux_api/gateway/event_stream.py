"""A follower's view of one job: what was missed, what happens, and the end, whatever becomes of the event hub."""

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from mflux_api.actors import messages as m
from mflux_api.errors import ServiceRestarting
from mflux_api.jobs.job import Job, Stage, Status
from mflux_api.jobs.progress import Finished, Progress


class EventStream:
    """One follower of one job: the present or what was missed, then what happens, then the end."""

    def __init__(
        self,
        job: Job,
        subscription: m.Subscription,
        look: Callable[[], Awaitable[Job]],
        *,
        last_event_id: str | None = None,
    ) -> None:
        """Take what the stream is made of.

        Args:
            job: the job, read after subscribing.
            subscription: what the event hub gave.
            look: reads the job again; asked when the hub ends without an end of the job.
            last_event_id: the event after which the follower goes on.
        """
        self.finished = job.status.terminal
        """Whether the job had ended when its follower came, so that there is nothing to wait for."""
        self._look = look
        self._channel = subscription.channel
        self._past = deque(subscription.backlog)
        self._ended = job.status.terminal and last_event_id == Finished(job=job).event_id
        if last_event_id is None or not subscription.logged:
            latest = subscription.latest
            if latest is None or job.status.terminal:
                latest = m.LogEntry(id=latest.id if latest is not None else "", event=_state_of(job))
            self._past.appendleft(latest)

    @property
    def ended(self) -> bool:
        """Whether the follower has had the terminal event: from the start, if it came back with its id."""
        return self._ended

    def close(self) -> None:
        """End the stream; again, it does nothing."""
        self._channel.close()

    async def __aenter__(self) -> "EventStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> "EventStream":
        return self

    async def __anext__(self) -> m.LogEntry:
        """Return the next event.

        Raises:
            ServiceRestarting: the hub ended and the job goes on; follow again.
        """
        if self._ended:
            raise StopAsyncIteration
        logged = self._past.popleft() if self._past else await self._receive()
        self._ended = isinstance(logged.event, Finished)
        return logged

    async def _receive(self) -> m.LogEntry:
        try:
            return await self._channel.receive()
        except trio.EndOfChannel:
            job = await self._look()
            if job.status.terminal:
                end = Finished(job=job)
                return m.LogEntry(id=end.event_id, event=end)
            raise ServiceRestarting("The event stream was restarted; follow the job again") from None


def _state_of(job: Job) -> Progress:
    """State where a job is when no log says so."""
    done = job.status is Status.COMPLETED
    steps = job.request.steps_run
    return Progress(
        id=job.id,
        status=job.status,
        stage=Stage.SAVING if done else Stage.QUEUED,
        progress=job.progress,
        step=steps if done else 0,
        steps=steps,
        image=len(job.images),
        images=job.request.num_images,
        attempt=job.engine_deaths + 1,
    )

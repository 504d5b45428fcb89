"""After a start: the unfinished jobs of the store are taken up again."""

from collections.abc import Callable

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Address
from mflux_api.actors.scheduler.draining import Draining
from mflux_api.actors.scheduler.endings import Endings
from mflux_api.actors.scheduler.entries import Entry, JobEvent
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.actors.scheduler.job_runner import JobRunner
from mflux_api.actors.scheduler.retries import Retries
from mflux_api.errors import ServiceError
from mflux_api.jobs.job import Job, Status


class Recovery:
    """Brings the queue up to what the store has, once for each start."""

    def __init__(
        self,
        queue: JobQueue,
        endings: Endings,
        draining: Draining,
        retries: Retries,
        nursery: trio.Nursery,
        *,
        hub: Address[m.HubMessage],
        job_runner: JobRunner,
        enqueue: Callable[[Entry], int],
        dispatch: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._endings = endings
        self._draining = draining
        self._retries = retries
        self._nursery = nursery
        self._hub = hub
        self._job_runner = job_runner
        self._enqueue = enqueue
        self._dispatch = dispatch
        self.unread = False
        """Whether the store could not be read yet."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Requeue what was running, and publish every end that no follower has heard of.

        Reports itself started when that is done, or when the store cannot be read now: the start goes on then.
        """

        def unreadable(_: ServiceError) -> None:
            if not self.unread:
                self.unread = True
                task_status.started()

        found = await self._endings.ask_again("unfinished jobs", self._endings.unfinished, troubled=unreadable)
        for job in found:
            # Where the start went on without them, new ones came meanwhile.
            if self._queue.get(job.id) is None:
                await self._recover(job)
        self._endings.recovered.set()
        if self._draining.begun:
            self._draining.fail_waiting_sync()
        await self._endings.publish_unheard()
        if self.unread:
            self.unread = False
            self._dispatch()
        else:
            task_status.started()

    async def _recover(self, job: Job) -> None:
        entry = self._queue.add(job)
        await self._hub.tell(m.Publish(job_id=job.id, event=entry.tracker.latest, owner=job.owner))
        if job.started_at is not None:
            # Of an attempt that had no end.
            await self._job_runner.discard_all(job)
        if job.status is Status.GENERATING:
            entry.on(JobEvent.FOUND_RUNNING)
            await self._nursery.start(self._retries.recover, entry)
            return
        entry.on(JobEvent.KEPT)
        entry.kept.set()
        exhausted = self._retries.exhausted(job)
        if exhausted is not None:
            await self._endings.fail(entry, exhausted)
        else:
            self._enqueue(entry)

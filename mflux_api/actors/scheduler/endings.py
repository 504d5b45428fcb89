"""How a job ends: one commit, then one terminal event, whichever task comes first."""

import logging
from collections.abc import Callable
from functools import partial

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone, Address, Ask
from mflux_api.actors.scheduler.job_queue import OVER, Entry, JobEvent, JobQueue
from mflux_api.errors import ServiceError
from mflux_api.jobs.job import Failure, Job
from mflux_api.jobs.progress import Finished

logger = logging.getLogger(__name__)

STORE_RETRY_SECONDS = 1.0


class Endings:
    """Commits ends and publishes them; shared by the scheduler's tasks."""

    def __init__(
        self,
        queue: JobQueue,
        *,
        store: Address[m.StoreMessage],
        hub: Address[m.HubMessage],
        stats: Address[m.StatsMessage],
        settled: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._store = store
        self._hub = hub
        self._stats = stats
        self._settled = settled

    async def finish(self, entry: Entry, outcome: m.Outcome) -> None:
        """Commit the end and publish it; only the first caller does anything."""
        # A task that is being stopped must not begin what it cannot complete.
        await trio.lowlevel.checkpoint_if_cancelled()
        if entry.state in OVER:
            return
        downloading = entry.state is entry.state.DOWNLOADING
        entry.on(JobEvent.END)
        if downloading:
            entry.scope.cancel()
        entry.job = await self.store_with_retry(partial(m.Finish, job_id=entry.job.id, outcome=outcome))
        await self._hub.tell(m.Publish(job_id=entry.job.id, event=Finished(job=entry.job)))
        self._queue.forget(entry)
        entry.on(JobEvent.COMMITTED)
        entry.finished.set()
        if entry.job.failure is not None:
            logger.warning("job %s failed: %s", entry.job.id, entry.job.failure.code)
        self._stats.tell_lossy(m.Count(name=entry.job.status.value))
        self._settled()

    async def fail(self, entry: Entry, error: ServiceError) -> None:
        """End a job with an error; what was saved stays."""
        failure, progress = Failure.from_error(error), entry.tracker.latest.progress
        await self.finish(entry, m.Failed(failure=failure, images=tuple(entry.images), progress=progress))

    async def cancel(self, job_id: str) -> Job | None:
        """Cancel a job and return it; a finished one as it is, an unknown one as ``None``.

        Raises:
            ServiceError: the store cannot be read, or the job was removed.
        """
        entry = self._queue.get(job_id)
        if entry is None:
            return await self._store.ask(m.GetJob(job_id=job_id))
        await entry.kept.wait()
        if entry.state in OVER:
            await entry.finished.wait()
            return entry.job
        if self._queue.get(job_id) is not entry:
            return None
        self._queue.take(entry)
        # The task ends at its next checkpoint; by then the job is taken, and it cannot finish it any more.
        entry.scope.cancel()
        progress = entry.tracker.latest.progress
        await self.finish(entry, m.JobWasCancelled(images=tuple(entry.images), progress=progress))
        return entry.job

    async def answer_cancel(self, message: m.CancelJob) -> None:
        """Cancel a job and answer with what became of it."""
        try:
            message.reply.ok(await self.cancel(message.job_id))
        except (ServiceError, ActorGone) as error:
            message.reply.fail(error)

    async def abandon(self, job_id: str) -> None:
        """Cancel a job whose caller does not wait for an answer."""
        try:
            await self.cancel(job_id)
        except ServiceError as error:
            logger.debug("an abandoned job needs no cancelling: %s", error.code)

    async def publish_unheard(self) -> None:
        """Publish the end of every job whose log has none: the scheduler died between the commit and the event."""
        for job_id in await self._hub.ask(m.OpenLogs()):
            if self._queue.get(job_id) is None:
                await self._publish_end(job_id)

    async def _publish_end(self, job_id: str) -> None:
        try:
            job = await self._store.ask(m.GetJob(job_id=job_id))
        except ServiceError as error:
            logger.warning("job %s: its end cannot be told (%s)", job_id, error.code)
            return
        if job is not None and job.status.terminal:
            await self._hub.tell(m.Publish(job_id=job_id, event=Finished(job=job)))

    async def store_with_retry(self, change: Callable[[], Ask[Job]]) -> Job:
        """Have the store change a job. What it cannot write now, on a full disk, it is asked to write again."""
        while True:
            try:
                return await self._store.ask(change())
            except ServiceError as error:
                logger.warning("a job's state cannot be stored (%s: %s); trying again", error.code, error.message)
                await trio.sleep(STORE_RETRY_SECONDS)

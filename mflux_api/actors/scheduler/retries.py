"""Retries: a job goes back to the queue after a death or a halt, until its attempts are used up."""

import logging
from collections.abc import Callable

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Address
from mflux_api.actors.scheduler.draining import Draining, shutting_down
from mflux_api.actors.scheduler.endings import STORE_RETRY_SECONDS, Endings
from mflux_api.actors.scheduler.job_queue import OVER, Entry, JobEvent, JobQueue
from mflux_api.config import SchedulerSettings
from mflux_api.errors import EngineCrashed, ServerCrashed, ServiceError
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.memory_advice import MemoryAdvice
from mflux_api.jobs.progress import Progress

logger = logging.getLogger(__name__)

MAX_SERVICE_DEATHS = 5


class Retries:
    """What becomes of an attempt that had no end; shared by the scheduler's tasks."""

    def __init__(
        self,
        queue: JobQueue,
        endings: Endings,
        draining: Draining,
        *,
        store: Address[m.StoreMessage],
        settings: SchedulerSettings,
        advice: MemoryAdvice,
        publish: Callable[[Progress], None],
        enqueue: Callable[[Entry], int],
        discard_images: Callable[[Entry], None],
    ) -> None:
        self._queue = queue
        self._endings = endings
        self._draining = draining
        self._store = store
        self._settings = settings
        self._advice = advice
        self._publish = publish
        self._enqueue = enqueue
        self._discard_images = discard_images

    async def retry(self, entry: Entry, requeue: Callable[[], m.Requeue]) -> None:
        """Put a job back into the queue after an attempt without an end, or fail it when its attempts are used up.

        Args:
            entry: the job.
            requeue: makes the question to the store, which counts whose death it was.
        """
        # A cancelled job's scope lets this question not pass; but it may be cancelled after the answer was given.
        entry.job = await self._endings.store_with_retry(requeue)
        if entry.state in OVER:
            return
        self._discard_images(entry)
        exhausted = self.exhausted(entry.job, out_of_memory=entry.out_of_memory)
        if exhausted is None and self._draining.begun and entry.job.synchronous:
            exhausted = shutting_down()
        if exhausted is not None:
            await self._endings.fail(entry, exhausted)
            return
        self._back_to_queue(entry)

    def _back_to_queue(self, entry: Entry) -> None:
        self._publish(entry.tracker.back_to_queue())
        entry.on(JobEvent.REQUEUED)
        self._queue.take(entry)
        self._enqueue(entry)

    async def requeue_halted(self, entry: Entry) -> None:
        """Give a job back whose run was halted; that counts as no death."""
        # A scope of its own: a cancel may come while the store is asked, and wins.
        entry.scope = trio.CancelScope()
        with entry.scope:
            if not (entry.job.synchronous and self._draining.begun):
                entry.job = await self._given_back(entry.job)
            # The cancel may come after the answer was given, and the drain while it was asked for.
            if entry.state in OVER:
                return
            if entry.job.synchronous and self._draining.begun:
                await self._endings.fail(entry, shutting_down())
                return
            self._back_to_queue(entry)

    async def _given_back(self, job: Job) -> Job:
        while True:
            try:
                # What the halt cut off may have been a question to the store: only the store knows the answer.
                stored = await self._store.ask(m.GetJob(job_id=job.id))
                if stored is None or stored.status is not Status.GENERATING:
                    return job
                return await self._store.ask(m.Requeue(job_id=job.id))
            except ServiceError as error:
                if self._draining.begun:
                    # The drain must not wait for ever; the next start counts a death.
                    logger.warning("job %s: it is left to the next start (%s)", job.id, error.code)
                    return job
                logger.warning("job %s: it cannot be given back (%s); trying again", job.id, error.code)
                await trio.sleep(STORE_RETRY_SECONDS)

    def exhausted(self, job: Job, *, out_of_memory: bool = False) -> ServiceError | None:
        """Return the error for a job whose attempts are used up; ``None`` while there are some left."""
        if job.engine_deaths >= self._settings.max_attempts:
            if out_of_memory:
                return self._advice.error(
                    job.model,
                    low_ram=job.request.low_ram,
                    reason=f"the engine was ended {job.engine_deaths} times on this job, at last for want of memory",
                    attempts=job.engine_deaths,
                )
            return EngineCrashed(
                f"The engine crashed {job.engine_deaths} times on this job; try a smaller size or another model",
                {"attempts": job.engine_deaths},
            )
        if job.service_deaths >= MAX_SERVICE_DEATHS:
            return ServerCrashed(
                f"The service ended {job.service_deaths} times on this job; submit it again to retry",
                {"deaths": job.service_deaths},
            )
        return None

"""Retries: a job goes back to the queue after a death or a halt, until its attempts are used up."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.scheduler.draining import Draining, shutting_down
from mflux_api.actors.scheduler.endings import Endings
from mflux_api.actors.scheduler.entries import OVER, Entry, JobEvent
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.config import SchedulerSettings
from mflux_api.errors import EngineCrashed, ServerCrashed, ServiceError
from mflux_api.jobs.job import Job
from mflux_api.jobs.memory_advice import MemoryAdvice
from mflux_api.jobs.progress import Progress
from mflux_api.storage.rows import UnreadableRow

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
        settings: SchedulerSettings,
        advice: MemoryAdvice,
        publish: Callable[[Progress], None],
        enqueue: Callable[[Entry], int],
        discard_images: Callable[[Entry], Awaitable[None]],
        settled: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._endings = endings
        self._draining = draining
        self._settings = settings
        self._advice = advice
        self._publish = publish
        self._enqueue = enqueue
        self._discard_images = discard_images
        self._settled = settled
        self.stuck: set[str] = set()
        """Jobs that ran when the service ended, and that the store cannot put back into the queue now."""

    async def retry(self, entry: Entry, requeue: Callable[[], m.Requeue]) -> None:
        """Put a job back into the queue after an attempt without an end, or fail it when its attempts are used up.

        Args:
            entry: the job.
            requeue: makes the question to the store, which counts whose death it was.
        """
        # A cancelled job's scope lets this question not pass; but it may be cancelled after the answer was given.
        if not await self.persist(entry, partial(self._endings.change, requeue)) or entry.state in OVER:
            return
        await self._discard_images(entry)
        if entry.state in OVER:
            return
        exhausted = self.exhausted(entry.job, out_of_memory=entry.out_of_memory)
        if exhausted is None and self._draining.begun and entry.job.synchronous:
            exhausted = shutting_down()
        if exhausted is not None:
            await self._endings.fail(entry, exhausted)
            return
        self.back_to_queue(entry)

    def back_to_queue(self, entry: Entry) -> None:
        """Give a job its place in the queue again."""
        self._publish(entry.tracker.back_to_queue())
        entry.on(JobEvent.REQUEUED)
        self._queue.take(entry)
        self._enqueue(entry)

    async def requeue_halted(self, entry: Entry) -> None:
        """Give a job back whose run was halted; that counts as no death."""
        # A scope of its own: a cancel may come while the store is asked, and wins.
        entry.scope = trio.CancelScope()
        with entry.scope:
            give_back = partial(self._endings.give_back, entry)
            refused = entry.job.synchronous and self._draining.begun
            # The cancel may come after the answer was given, and the drain while it was asked for.
            if not (refused or await self.persist(entry, give_back)) or entry.state in OVER:
                return
            if entry.job.synchronous and self._draining.begun:
                await self._endings.fail(entry, shutting_down())
                return
            await self._discard_images(entry)
            if entry.state not in OVER:
                self.back_to_queue(entry)

    async def recover(self, entry: Entry, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give a job back that ran when the scheduler or the service ended; that counts as its death.

        Reports itself started when that is done, or when the store cannot write it now: the start goes on then.
        """

        def is_stuck(_: ServiceError) -> None:
            if entry.job.id not in self.stuck:
                self.stuck.add(entry.job.id)
                task_status.started()

        requeue = partial(m.Requeue, job_id=entry.job.id, service_died=True)
        entry.scope = trio.CancelScope()
        # Only now: a cancel before would end the job beside this question.
        entry.kept.set()
        with entry.scope:
            kept = await self.persist(entry, partial(self._endings.change, requeue), troubled=is_stuck)
            if kept and entry.state not in OVER:
                exhausted = self.exhausted(entry.job)
                if exhausted is not None:
                    await self._endings.fail(entry, exhausted)
                else:
                    entry.on(JobEvent.REQUEUED)
                    self._enqueue(entry)
        if entry.job.id in self.stuck:
            self.stuck.discard(entry.job.id)
            self._settled()
        else:
            task_status.started()

    async def persist(
        self,
        entry: Entry,
        question: Callable[[], Awaitable[Job]],
        *,
        troubled: Callable[[ServiceError], None] = lambda _: None,
    ) -> bool:
        """Have the store change a job that is not over; what it cannot write now it is asked again, but for two.

        A synchronous job fails at once, with all those that wait behind it: their callers need an answer. A drain does
        not wait for a disk: the next start takes the job up, and counts a death.

        Returns:
            Whether the job goes on.
        """

        def stalled(error: ServiceError) -> None:
            troubled(error)
            self._endings.fail_waiting_sync(error)

        def patient() -> bool:
            return not (entry.job.synchronous or self._draining.begun)

        try:
            stored = await self._endings.ask_again(
                f"job {entry.job.id}: its state", question, troubled=stalled, patient=patient
            )
            # Of a job that waits the store has the init images; how many they are is in the request.
            entry.job = attrs.evolve(stored, request=entry.job.request)
        except UnreadableRow as error:
            await self._endings.lose(entry, error)
            return False
        except ServiceError as error:
            if entry.job.synchronous:
                await self._endings.fail(entry, error)
                return False
            logger.warning("job %s: it is left to the next start (%s)", entry.job.id, error.code)
        return True

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

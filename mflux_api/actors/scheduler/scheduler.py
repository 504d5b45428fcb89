"""The scheduler: what runs next, and what becomes of it.

Its receive loop only decides. Every accepted, running or cancelled job has a task of its own in the scheduler's
nursery that does the asking; a running job's cancel scope is the job.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import assert_never

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone, Address, Ask, Mailbox, MailboxFull
from mflux_api.actors.scheduler.job_queue import Entry, JobQueue
from mflux_api.actors.scheduler.job_runner import JobRunner, SaveFailed
from mflux_api.actors.scheduler.keyed_lock import KeyedLock
from mflux_api.actors.scheduler.model_on_disk import ModelOnDisk
from mflux_api.config import SchedulerSettings
from mflux_api.engine.interface import EngineDied
from mflux_api.errors import (
    EngineCrashed,
    EngineUnavailable,
    IdempotencyConflict,
    InternalError,
    ModelNotDownloaded,
    QueueFull,
    ServerCrashed,
    ServiceError,
    ShuttingDown,
)
from mflux_api.jobs.idempotency import IdempotencyKey
from mflux_api.jobs.job import Failure, Job, Status, new_job_id
from mflux_api.jobs.progress import Finished, Progress
from mflux_api.supervisor import Started

logger = logging.getLogger(__name__)

MAX_SERVICE_DEATHS = 5
STORE_RETRY_SECONDS = 1.0
MAX_INPUT_BYTES = 1 << 30
"""Init images of unfinished jobs, all together; a full queue of large ones would fill the memory."""


class Scheduler:
    """Admission, order, retries and cancellation."""

    def __init__(
        self,
        mailbox: Mailbox[m.SchedulerMessage],
        *,
        store: Address[m.StoreMessage],
        hub: Address[m.HubMessage],
        stats: Address[m.StatsMessage],
        fetcher: ModelOnDisk,
        job_runner: JobRunner,
        settings: SchedulerSettings,
        slots: int = 1,
    ) -> None:
        self._mailbox = mailbox
        self._store = store
        self._hub = hub
        self._stats = stats
        self._fetcher = fetcher
        self._job_runner = job_runner
        self._settings = settings
        self._slots = slots
        self._draining = False

    async def run(self, status: Started) -> None:
        """Take up what the store has unfinished, then serve the mailbox until cancelled."""
        self._queue = JobQueue(self._job_runner.estimates)
        self._claims = KeyedLock()
        self._active = 0
        self._degraded = False
        self._resident: frozenset[str] = frozenset()
        self._drains: list[m.Drain] = []
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._recover()
            status.started()
            self._dispatch()
            while True:
                self._handle(await self._mailbox.receive())

    def _handle(self, message: m.SchedulerMessage) -> None:
        match message:
            case m.Submit():
                self._submit(message)
            case m.CancelJob():
                self._nursery.start_soon(self._cancel_and_answer, message)
            case m.Abandon():
                self._nursery.start_soon(self._abandon, message.job_id)
            case m.GetSnapshots():
                message.reply.ok(self._queue.live())
            case m.GetLoad():
                message.reply.ok(
                    m.Load(
                        active=self._active,
                        queued=self._queue.accepted(),
                        draining=self._draining,
                        degraded=self._degraded,
                    )
                )
            case m.Drain():
                self._draining = True
                self._drains.append(message)
                self._fail_waiting_sync()
                if message.halt:
                    self._halt()
                self._answer_drains()
            case m.EngineHealth():
                self._degraded = message.degraded
            case m.ModelsResident():
                self._resident = message.models
            case _:
                assert_never(message)

    # --- admission ---

    def _submit(self, message: m.Submit) -> None:
        if message.key is not None:
            self._nursery.start_soon(self._submit_once, message, message.key)
            return
        entry = self._admit(message)
        if entry is not None:
            self._nursery.start_soon(self._persist, entry, message)

    async def _submit_once(self, message: m.Submit, key: IdempotencyKey) -> None:
        """Answer with the job that was accepted under the key, or accept one."""
        async with self._claims.of(key.key):
            try:
                known = await self._store.ask(m.GetIdempotencyRecord(key=key.key))
                job = None if known is None else await self._store.ask(m.GetJob(job_id=known.job_id))
            except (ServiceError, ActorGone) as error:
                message.reply.fail(error)
                return
            if known is not None and known.body != key.body:
                message.reply.fail(
                    IdempotencyConflict("This Idempotency-Key was used before with another body; choose a new one")
                )
            elif job is not None:
                message.reply.ok(m.Accepted(job=job, position=self._queue.position(job.id)))
            else:
                entry = self._admit(message)
                if entry is not None:
                    await self._persist(entry, message)

    def _admit(self, message: m.Submit) -> Entry | None:
        """Give a job that may come a place, or refuse it."""
        refusal = self._refusal()
        if refusal is not None:
            message.reply.fail(refusal)
            return None
        job = Job(
            id=new_job_id(),
            request=message.request,
            created_at=datetime.now(UTC),
            synchronous=message.synchronous,
        )
        return self._queue.enter(job)

    def _refusal(self) -> ServiceError | None:
        if self._draining:
            return _shutting_down()
        if self._degraded:
            return EngineUnavailable("The engine does not start; see GET /api/v1/health and the log")
        if self._queue.accepted() >= self._settings.max_queue:
            return QueueFull(
                f"The queue is full ({self._settings.max_queue} jobs); try again later",
                {"max_queue": self._settings.max_queue},
            )
        if self._queue.input_bytes() >= MAX_INPUT_BYTES:
            return QueueFull("The init images of waiting jobs take all the room there is for them; try again later")
        return None

    async def _persist(self, entry: Entry, message: m.Submit) -> None:
        try:
            await self._store.ask(m.Insert(job=entry.job, key=message.key))
        except (ServiceError, ActorGone) as error:
            self._queue.forget(entry)
            entry.kept.set()
            message.reply.fail(error)
            self._answer_drains()
            return
        # Not lossy, unlike later progress: it opens the job's log, which followers need.
        await self._hub.tell(m.Publish(job_id=entry.job.id, event=entry.tracker.latest))
        position = self._enqueue(entry)
        entry.kept.set()
        told = message.reply.ok(m.Accepted(job=entry.job, position=position))
        # When whoever submitted is gone, an async job stays: it was accepted, and its id may be read elsewhere.
        if entry.job.synchronous and not told:
            self._nursery.start_soon(self._abandon, entry.job.id)
        if self._draining:
            self._fail_waiting_sync()
        self._dispatch()

    def _enqueue(self, entry: Entry) -> int:
        """Put a job into the queue and have its model brought to disk, if it is not there; return its place."""
        position = self._queue.enqueue(entry)
        if self._fetcher.concerns(entry.job):
            entry.fetching = trio.CancelScope()
            self._nursery.start_soon(self._fetch, entry, entry.fetching)
        return position

    async def _fetch(self, entry: Entry, scope: trio.CancelScope) -> None:
        failure: ServiceError | None = None
        with scope:
            try:
                await self._fetcher.fetch(entry.job, entry.tracker, self._publish)
            except ServiceError as error:
                failure = error
        if scope.cancelled_caught or entry.fetching is not scope:
            return
        if failure is not None:
            self._queue.take(entry)
            await self._fail(entry, failure)
            return
        entry.fetching = None
        self._dispatch()

    # --- running ---

    def _dispatch(self) -> None:
        while self._active < self._slots and not self._draining:
            entry = self._queue.next(self._resident, self._settings.max_affinity_skips)
            if entry is None:
                return
            entry.scope = trio.CancelScope()
            self._active += 1
            self._nursery.start_soon(self._work, entry, entry.scope)

    async def _work(self, entry: Entry, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await self._run(entry)
            if entry.halted and not entry.finishing:
                await self._requeue(entry)
        finally:
            self._active -= 1
            entry.scope = None
            if not entry.finishing:
                # This attempt is over and the job is not: nobody will ever point to what it saved.
                self._job_runner.discard(entry.images)
                entry.images.clear()
        self._answer_drains()
        self._dispatch()

    async def _run(self, entry: Entry) -> None:
        entry.job = await self._store_with_retry(partial(m.StartJob, job_id=entry.job.id))
        entry.tracker.begin_attempt(entry.job.engine_deaths + 1)
        entry.images.clear()
        try:
            timings = await self._job_runner.run(entry.job, entry.tracker, entry.images, self._publish)
        except EngineDied as died:
            logger.warning("job %s: the engine died (%s)", entry.job.id, died.reason)
            entry.out_of_memory = died.out_of_memory
            await self._retry(entry, partial(m.Requeue, job_id=entry.job.id, engine_died=True))
        except ActorGone:
            await self._retry(entry, partial(m.Requeue, job_id=entry.job.id, service_died=True))
        except ModelNotDownloaded:
            # It was deleted after it had been looked for: that is nobody's death, and it is looked for again.
            await self._retry(entry, partial(m.Requeue, job_id=entry.job.id))
        except SaveFailed as failed:
            await self._fail(entry, failed.error)
        except ServiceError as error:
            await self._fail(entry, error)
        except Exception as error:
            # A defect. After a restart it would meet this job again, and in the end take the whole tree along.
            logger.error("job %s: a defect: %s", entry.job.id, type(error).__name__)
            logger.debug("job %s: a defect", entry.job.id, exc_info=error)
            await self._fail(entry, InternalError("The service failed on this job; the log has the details"))
        else:
            await self._finish(entry, m.Completed(images=tuple(entry.images), timings=timings))

    async def _retry(self, entry: Entry, requeue: Callable[[], m.Requeue]) -> None:
        # A cancelled job's scope lets this question not pass; but it may be cancelled after the answer was given.
        entry.job = await self._store_with_retry(requeue)
        if entry.finishing:
            return
        self._job_runner.discard(entry.images)
        entry.images.clear()
        exhausted = self._exhausted(entry.job, out_of_memory=entry.out_of_memory)
        if exhausted is None and self._draining and entry.job.synchronous:
            exhausted = _shutting_down()
        if exhausted is not None:
            await self._fail(entry, exhausted)
            return
        self._publish(entry.tracker.back_to_queue())
        self._enqueue(entry)

    def _exhausted(self, job: Job, *, out_of_memory: bool = False) -> ServiceError | None:
        if job.engine_deaths >= self._settings.max_attempts:
            if out_of_memory:
                return self._job_runner.advice.error(
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

    # --- draining ---

    def _fail_waiting_sync(self) -> None:
        """Fail the synchronous jobs that wait: their callers need an answer, and a restart would lose them."""
        for entry in self._queue:
            waits = entry.scope is None and entry.kept.is_set() and not entry.finishing
            if waits and entry.job.synchronous:
                self._nursery.start_soon(self._fail, entry, _shutting_down())

    def _halt(self) -> None:
        for entry in self._queue:
            if entry.scope is not None and not entry.finishing and not entry.halted:
                entry.halted = True
                entry.scope.cancel()

    async def _requeue(self, entry: Entry) -> None:
        """What becomes of a job whose run was halted. It is nobody's death."""
        # A scope of its own: a cancel may come while the store is asked, and wins.
        entry.scope = trio.CancelScope()
        with entry.scope:
            if entry.job.synchronous:
                await self._fail(entry, _shutting_down())
                return
            try:
                # What the halt cut off may have been a question to the store: only the store knows the answer.
                job = await self._store.ask(m.GetJob(job_id=entry.job.id))
            except ServiceError as error:
                logger.warning("job %s: it is left to the next start (%s)", entry.job.id, error.code)
                return
            if job is not None and job.status is Status.GENERATING:
                entry.job = await self._store_with_retry(partial(m.Requeue, job_id=job.id))
            self._publish(entry.tracker.back_to_queue())
            self._queue.take(entry)
            self._enqueue(entry)

    def _answer_drains(self) -> None:
        if self._active == 0 and not any(self._drain_waits_for(entry) for entry in self._queue):
            while self._drains:
                self._drains.pop().reply.ok(None)

    def _drain_waits_for(self, entry: Entry) -> bool:
        return entry.finishing or entry.job.synchronous

    # --- endings ---

    async def _finish(self, entry: Entry, outcome: m.Outcome) -> None:
        """Commit the end and tell the world; only the first caller does anything."""
        # A task that is being stopped must not begin what it cannot complete.
        await trio.lowlevel.checkpoint_if_cancelled()
        if entry.finishing:
            return
        entry.finishing = True
        if entry.fetching is not None:
            entry.fetching.cancel()
        entry.job = await self._store_with_retry(partial(m.Finish, job_id=entry.job.id, outcome=outcome))
        await self._hub.tell(m.Publish(job_id=entry.job.id, event=Finished(job=entry.job)))
        self._queue.forget(entry)
        entry.finished.set()
        if entry.job.failure is not None:
            logger.warning("job %s failed: %s", entry.job.id, entry.job.failure.code)
        self._count(entry.job.status.value)
        self._answer_drains()

    async def _store_with_retry(self, change: Callable[[], Ask[Job]]) -> Job:
        """Have the store change a job. What it cannot write now, on a full disk, it is asked to write again."""
        while True:
            try:
                return await self._store.ask(change())
            except ServiceError as error:
                logger.warning("a job's state cannot be stored (%s: %s); trying again", error.code, error.message)
                await trio.sleep(STORE_RETRY_SECONDS)

    async def _fail(self, entry: Entry, error: ServiceError) -> None:
        outcome = m.Failed(
            failure=Failure.from_error(error), images=tuple(entry.images), progress=entry.tracker.latest.progress
        )
        await self._finish(entry, outcome)

    async def _cancel_and_answer(self, message: m.CancelJob) -> None:
        try:
            message.reply.ok(await self._cancel(message.job_id))
        except (ServiceError, ActorGone) as error:
            message.reply.fail(error)

    async def _abandon(self, job_id: str) -> None:
        try:
            await self._cancel(job_id)
        except ServiceError as error:
            logger.debug("an abandoned job needs no cancelling: %s", error.code)

    async def _cancel(self, job_id: str) -> Job | None:
        entry = self._queue.get(job_id)
        if entry is None:
            return await self._store.ask(m.GetJob(job_id=job_id))
        await entry.kept.wait()
        if entry.finishing:
            await entry.finished.wait()
            return entry.job
        if self._queue.get(job_id) is not entry:
            return None
        self._queue.take(entry)
        if entry.scope is not None:
            # The task ends at its next checkpoint; by then the job is taken, and it cannot finish it any more.
            entry.scope.cancel()
        await self._finish(entry, m.Cancelled(images=tuple(entry.images), progress=entry.tracker.latest.progress))
        return entry.job

    async def _recover(self) -> None:
        """After a start: requeue what was running, and publish every end that nobody heard of."""
        for job in await self._store.ask(m.Unfinished()):
            if job.status is Status.GENERATING:
                self._job_runner.discard_all(job)
                job = await self._store_with_retry(partial(m.Requeue, job_id=job.id, service_died=True))
            entry = self._queue.enter(job)
            entry.kept.set()
            exhausted = self._exhausted(job)
            if exhausted is not None:
                await self._fail(entry, exhausted)
                continue
            await self._hub.tell(m.Publish(job_id=job.id, event=entry.tracker.latest))
            self._enqueue(entry)
        if self._draining:
            self._fail_waiting_sync()
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

    # --- telling ---

    def _publish(self, progress: Progress) -> None:
        entry = self._queue.get(progress.id)
        if entry is None or entry.finishing:
            return
        timed = attrs.evolve(progress, eta_seconds=self._queue.etas().get(progress.id))
        try:
            self._hub.tell_nowait(m.Publish(job_id=progress.id, event=timed))
        except (MailboxFull, ActorGone):
            logger.debug("a progress event was dropped")

    def _count(self, name: str) -> None:
        try:
            self._stats.tell_nowait(m.Count(name=name))
        except (MailboxFull, ActorGone):
            logger.debug("a count was dropped")


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("The service is shutting down and takes no new work; try again when it is back")

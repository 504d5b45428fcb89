"""Admission: what becomes of a submission, from the first look at it to its place in the queue."""

import copy
import logging
from collections.abc import Callable
from datetime import UTC, datetime

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone, Address
from mflux_api.actors.scheduler.draining import Draining, shutting_down
from mflux_api.actors.scheduler.entries import Entry, JobEvent
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.actors.scheduler.keyed_lock import KeyedLock
from mflux_api.actors.scheduler.shares import share_of
from mflux_api.config import SchedulerSettings
from mflux_api.errors import (
    DiskFull,
    EngineUnavailable,
    IdempotencyConflict,
    InternalError,
    QueueFull,
    ServiceError,
    TooManyJobs,
)
from mflux_api.jobs.idempotency import IdempotencyKey
from mflux_api.jobs.job import Job

logger = logging.getLogger(__name__)

_BASE64_BYTES_PER_GB = 1_333_333_333
"""Characters that a gigabyte of init images takes in memory, where unfinished jobs have them as text."""


class Admission:
    """Accepts jobs: a job is accepted once the store has it."""

    def __init__(
        self,
        queue: JobQueue,
        draining: Draining,
        nursery: trio.Nursery,
        *,
        store: Address[m.StoreMessage],
        hub: Address[m.HubMessage],
        settings: SchedulerSettings,
        unavailable: Callable[[], EngineUnavailable | None],
        store_trouble: Callable[[], ServiceError | None],
        enqueue: Callable[[Entry], int],
        accepted: Callable[[Entry, bool], None],
    ) -> None:
        """Take what admission decides by.

        Args:
            queue: the unfinished jobs.
            draining: says whether no new work is taken.
            nursery: where submissions wait for the store.
            store: keeps what is accepted.
            hub: opens the job's log.
            settings: the length of the queue.
            unavailable: tells the error where no engine could run a job.
            store_trouble: tells why the store cannot write now, where it is asked again for that.
            enqueue: gives a kept job its place in the queue and returns it.
            accepted: called with every accepted job, and whether its caller was still there.
        """
        self._queue = queue
        self._draining = draining
        self._nursery = nursery
        self._store = store
        self._hub = hub
        self._settings = settings
        self._unavailable = unavailable
        self._store_trouble = store_trouble
        self._enqueue = enqueue
        self._accepted = accepted
        self._keys = KeyedLock()
        self._refused = False

    def submit(self, message: m.Submit) -> None:
        """Accept a job or refuse it; the message is answered in either case."""
        if message.key is not None:
            self._nursery.start_soon(self._submit_once, message, message.key)
            return
        entry = self._admit(message)
        if entry is not None:
            self._nursery.start_soon(self._persist, entry, message)

    async def _submit_once(self, message: m.Submit, key: IdempotencyKey) -> None:
        """Answer with the job that was accepted under the key, or accept one."""
        async with self._keys.hold(key.key):
            try:
                accepted = await self._accepted_under(key)
            except (ServiceError, ActorGone) as error:
                message.reply.fail(error)
                return
            if accepted is not None:
                message.reply.ok(accepted)
                return
            entry = self._admit(message)
            if entry is not None:
                await self._persist(entry, message)

    async def find(self, message: m.FindAccepted) -> None:
        """Answer with the job that was accepted under a key."""
        # One that is on its way into the store is waited for.
        async with self._keys.hold(message.key.key):
            try:
                message.reply.ok(await self._accepted_under(message.key))
            except (ServiceError, ActorGone) as error:
                message.reply.fail(error)

    async def _accepted_under(self, key: IdempotencyKey) -> m.Accepted | None:
        known = await self._store.ask(m.GetIdempotencyRecord(key=key.key))
        job = None if known is None else await self._store.ask(m.GetJob(job_id=known.job_id))
        if known is not None and known.body != key.body:
            raise IdempotencyConflict("This Idempotency-Key was used before with another body; choose a new one")
        return None if job is None else m.Accepted(job=job, position=self._queue.position(job.id))

    def _admit(self, message: m.Submit) -> Entry | None:
        """Make an entry for a job that may come, or refuse it."""
        refusal = self._refusal(
            owner=message.owner,
            most_queued=message.most_queued,
            synchronous=message.synchronous,
            init_images=bool(message.request.init_images),
        )
        if refusal is not None:
            message.reply.fail(refusal)
            return None
        job = Job(
            id=message.job_id,
            request=message.request,
            created_at=datetime.now(UTC),
            synchronous=message.synchronous,
            owner=message.owner,
        )
        entry = self._queue.add(job)
        entry.request_id = message.request_id
        return entry

    def check(self, message: m.CheckAdmission) -> None:
        """Answer whether a job would be accepted now."""
        refusal = self._refusal(
            owner=message.owner,
            most_queued=message.most_queued,
            synchronous=message.synchronous,
            init_images=message.init_images,
        )
        if refusal is not None:
            message.reply.fail(refusal)
        else:
            message.reply.ok(None)

    def _refusal(
        self, *, owner: str, most_queued: int | None, synchronous: bool, init_images: bool
    ) -> ServiceError | None:
        if self._draining.begun:
            return shutting_down()
        unavailable = self._unavailable()
        if unavailable is not None:
            return unavailable
        trouble = self._store_trouble()
        if trouble is not None and synchronous:
            # The store takes it into its memory, but could not write its start: its caller would wait in vain.
            return copy.copy(trouble)
        if self._queue.tally.queued() >= self._settings.max_queue:
            return QueueFull(
                f"The queue is full ({self._settings.max_queue} jobs); try again later",
                {"max_queue": self._settings.max_queue},
            )
        too_many = self._too_many_of(owner, most_queued)
        if too_many is not None:
            return too_many
        limit = self._settings.max_inputs_gb * _BASE64_BYTES_PER_GB
        if init_images and self._queue.tally.input_bytes() >= limit:
            return QueueFull(
                f"The init images of waiting jobs take more than scheduler.max_inputs_gb "
                f"({self._settings.max_inputs_gb:g} GB); try again when some of them have ended",
                {"max_inputs_gb": self._settings.max_inputs_gb},
            )
        return self._too_many_inputs_of(owner, limit) if init_images and owner else None

    def _too_many_of(self, owner: str, most_queued: int | None) -> TooManyJobs | None:
        """Return the error for a caller that has as many jobs waiting as it may, though the queue has room."""
        queued = self._queue.tally.queued_of(owner)
        others = self._queue.tally.queued() - queued
        limit, beside = most_queued or self._settings.max_queue_per_caller, ""
        if limit is None:
            if not owner:
                # The program that embeds the service decides about its own callers.
                return None
            limit = share_of(self._settings.max_queue, others=others)
            beside = ", while other callers wait" if others else ""
        if queued < limit or limit >= self._settings.max_queue:
            return None
        return TooManyJobs(
            f"You have {queued} job(s) waiting and may have {limit}{beside}; wait until some have run, or cancel some",
            {"queued": queued, "limit": limit},
        )

    def _too_many_inputs_of(self, owner: str, whole: float) -> TooManyJobs | None:
        """Return the error for a caller whose init images leave others no room for theirs."""
        used = self._queue.tally.input_bytes_of(owner)
        limit = share_of(int(whole), others=self._queue.tally.input_bytes() - used)
        if used < limit:
            return None
        return TooManyJobs(
            f"The init images of your unfinished jobs take {used / _BASE64_BYTES_PER_GB:.3g} GB and may take "
            f"{limit / _BASE64_BYTES_PER_GB:.3g} GB, a share of scheduler.max_inputs_gb; wait until some have run, or "
            "cancel some",
            {"queued": self._queue.tally.queued_of(owner), "limit_gb": round(limit / _BASE64_BYTES_PER_GB, 3)},
        )

    async def _persist(self, entry: Entry, message: m.Submit) -> None:
        try:
            await self._store.ask(m.Insert(job=entry.job, key=message.key))
        except (ServiceError, ActorGone) as error:
            self._queue.forget(entry)
            entry.kept.set()
            self._note_refusal(error)
            message.reply.fail(error)
            self._draining.answer_when_quiet()
            return
        self._refused = False
        # The store has the init images now; a hundred waiting jobs would hold gigabytes.
        entry.job = attrs.evolve(entry.job, request=entry.job.request.without_inputs())
        # Not lossy, unlike later progress: it opens the job's log, which followers need.
        await self._hub.tell(m.Publish(job_id=entry.job.id, event=entry.tracker.latest, owner=entry.job.owner))
        entry.on(JobEvent.KEPT)
        position = self._enqueue(entry)
        entry.kept.set()
        told = message.reply.ok(m.Accepted(job=entry.job, position=position))
        self._accepted(entry, told)

    def _note_refusal(self, error: ServiceError | ActorGone) -> None:
        """Say once in the log that the store takes no jobs, until it has taken one again."""
        if isinstance(error, DiskFull | InternalError) and not self._refused:
            self._refused = True
            logger.warning("new jobs are refused: %s", error.message)

"""The job store: the one place that knows what became of every job."""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import NoReturn, TypeVar, assert_never

import trio

from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Ask, Mailbox, MailboxFull
from mflux_api.errors import DiskFull, InternalError, InvalidParameter, JobGone, ServiceError
from mflux_api.jobs import job as jobs
from mflux_api.jobs.job import InvalidTransition, Job
from mflux_api.storage.repository import Page, Repository, Tombstone
from mflux_api.storage.retention import Removed, Retention, RetentionClock, expire, prune
from mflux_api.storage.rows import UnreadableRow
from mflux_api.supervisor import Started
from mflux_api.system.threads import read_in_thread, run_in_thread

T = TypeVar("T")

EXPIRE_SECONDS = 600.0
"""Between two passes of retention; every finished job is followed by one, too."""

UNREAD_SECONDS = 3600.0
"""After its end, what the caller of a synchronous job has to read it; one that embeds the service need not say so."""

CHECKPOINT_JOBS = 10
"""Finished jobs after which the database's log is written into its file, however busy the store is."""

QUIET_SECONDS = 0.2
"""Without a message, after which that is done with fewer: not between a job and the next, which would wait for it."""

CHECKPOINT_SECONDS = 1.0
"""After any other change of a job until the same: what only the log has is lost with the log."""

INPUTS_SECONDS = 60.0
"""For reading a job's init images, 64 MB at most; a network disk that is gone does not answer."""

INPUT_READERS = 4
"""Threads that read them at a time."""

SEARCH_ROWS = 500
"""Jobs that a search looks at before the store does what else it is asked: 3 ms, and 20 ms of the longest prompts."""

logger = logging.getLogger(__name__)


class JobStore:
    """Serializes every change of every job; the repository's calls run in one thread at a time."""

    def __init__(
        self,
        mailbox: Mailbox[m.StoreMessage],
        repository: Repository,
        retention: Retention | None = None,
        *,
        delivers: bool = False,
    ) -> None:
        """Take the storage.

        Args:
            mailbox: what it is told and asked.
            repository: where jobs are kept.
            retention: which of them expire; by default none.
            delivers: whether webhooks are delivered: their jobs stay until that is done.
        """
        self._mailbox = mailbox
        self._repository = repository
        self._retention = retention
        self._thread = trio.CapacityLimiter(1)
        self._readers = trio.CapacityLimiter(INPUT_READERS)
        self._clock = RetentionClock(_now)
        # Synchronous jobs whose callers have not read their results, and until when retention does not take those.
        self._unread: dict[str, float] = {}
        self._delivers = delivers
        self._running: set[str] = set()
        self._images_changed = trio.Event()
        self._images_changed.set()
        self._since_checkpoint = 0
        self._checkpoint_by = math.inf

    async def run(self, status: Started) -> None:
        """Serve the mailbox until cancelled, and apply retention."""
        await self._warn_if_new()
        await self._remove_abandoned_images()
        await self._expire()
        status.started()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._expire_regularly)
            if self._retention is not None and self._retention.max_image_bytes is not None:
                nursery.start_soon(self._bound_images, self._retention, self._retention.max_image_bytes)
            while True:
                message: m.StoreMessage | None = None
                quiet_at = trio.current_time() + QUIET_SECONDS if self._since_checkpoint else math.inf
                with trio.move_on_at(min(self._checkpoint_by, quiet_at)):
                    message = await self._mailbox.receive()
                if message is not None:
                    await self._try(message)
                await self._checkpoint_now_and_then(quiet=message is None)

    async def _try(self, message: m.StoreMessage) -> None:
        try:
            await self._handle(message)
        except (ServiceError, InvalidTransition) as error:
            # A full disk, or an asker that lost a race: its problem, and the store goes on.
            if isinstance(message, Ask):
                message.reply.fail(error)
            if isinstance(error, DiskFull):
                # The log begins anew when all of it is in the main file: that may be the room that the next try needs.
                self._checkpoint_soon()

    async def _handle(self, message: m.StoreMessage) -> None:
        match message:
            case m.Insert():
                await self._call(partial(self._repository.insert, message.job, message.key))
                if message.job.synchronous:
                    self._unread[message.job.id] = math.inf
                else:
                    self._checkpoint_soon()
                message.reply.ok(None)
            case m.GetIdempotencyRecord():
                message.reply.ok(await self._call(partial(self._repository.get_idempotency_record, message.key)))
            case m.StartJob():
                message.reply.ok(await self._change(message.job_id, lambda job: jobs.start(job, _now())))
                self._running.add(message.job_id)
                self._checkpoint_soon()
                await self._sync()
            case m.Requeue():
                message.reply.ok(await self._change(message.job_id, _requeue(message)))
                self._running.discard(message.job_id)
                self._checkpoint_soon()
            case m.Finish():
                message.reply.ok(await self._change(message.job_id, _finish(message)))
                self._running.discard(message.job_id)
                self._images_changed.set()
                self._since_checkpoint += 1
                self._checkpoint_soon()
                if message.job_id in self._unread:
                    self._unread[message.job_id] = trio.current_time() + UNREAD_SECONDS
                await self._expire()
            case m.GetJob():
                message.reply.ok(await self._get(message.job_id, message.visible))
            case m.GetInputs():
                read = await self._call(partial(self._repository.inputs, message.job_id))
                self._nursery.start_soon(self._answer_inputs, message, read)
            case m.ListJobs():
                message.reply.ok(await self._page(message))
            case m.SearchJobs():
                message.reply.ok(await self._search(message))
            case m.Unfinished():
                message.reply.ok(await self._call(self._repository.unfinished))
            case m.GetTotals():
                message.reply.ok(await self._call(self._repository.totals))
            case m.ExpireJobs():
                self._images_changed.set()
                await self._expire()
            case m.CallerDone():
                if self._unread.pop(message.job_id, None) is not None:
                    await self._expire()
            case m.PruneJobs():
                message.reply.ok(await self._prune(message))
            case m.GetUndelivered():
                message.reply.ok(await self._call(self._repository.undelivered))
            case m.CountDeliveries():
                owners = (await self._call(self._repository.owners_of_undelivered)).values()
                of_owner = sum(owner == message.owner for owner in owners)
                message.reply.ok(m.DeliveryCounts(of_owner=of_owner, in_all=len(owners)))
            case m.RecordDelivery():
                await self._record(message)
                message.reply.ok(None)
            case _:
                assert_never(message)

    async def _call(self, function: Callable[[], T]) -> T:
        return await run_in_thread(function, limiter=self._thread)

    async def _sync(self) -> None:
        """Have the beginning of a job on the disk, which its run did not wait for."""
        try:
            await self._call(self._repository.sync)
        except ServiceError as error:
            logger.debug("that a job runs is not on the disk yet (%s); its end is asked for again", error.code)

    async def _answer_inputs(self, message: m.GetInputs, read: Callable[[], tuple[str, ...]]) -> None:
        """Read init images beside the store's own thread: they are up to 64 MB, and the store serves everybody."""
        with trio.move_on_after(INPUTS_SECONDS):
            message.reply.ok(await read_in_thread(read, limiter=self._readers))
            return
        message.reply.fail(
            InternalError("The init images of this job cannot be read: the disk of jobs.state_dir does not answer")
        )

    async def _get(self, job_id: str, visible: Visibility) -> Job | None:
        try:
            found = await self._call(partial(self._repository.get, job_id))
        except UnreadableRow:
            # Whose it was cannot be read either.
            if visible != ALL_JOBS:
                return None
            raise
        if found is None or not visible.shows(found.owner):
            return None
        if isinstance(found, Tombstone):
            raise JobGone(
                f"The record of job '{found.id}' was removed (jobs.ttl_hours, jobs.keep_completed or a prune); look "
                "for its images in generation.output_dir",
                {"job_id": job_id},
            )
        return found

    async def _change(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        def read_change_write() -> Job:
            job = self._repository.get(job_id)
            if not isinstance(job, Job):
                raise InvalidTransition(f"job {job_id} is not in the store")
            changed = change(job)
            if changed is not job:
                self._repository.replace(changed)
            return changed

        return await self._call(read_change_write)

    async def _record(self, message: m.RecordDelivery) -> None:
        # Its job may be gone.
        with suppress(InvalidTransition):
            await self._change(message.job_id, lambda job: jobs.with_delivery(job, message.delivery))
        self._checkpoint_soon()

    async def _page(self, message: m.ListJobs) -> Page:
        try:
            return await self._call(
                partial(
                    self._repository.page,
                    limit=message.limit,
                    cursor=message.cursor,
                    status=message.status,
                    visible=message.visible,
                )
            )
        except ValueError:
            raise _invalid_cursor(message.cursor) from None

    async def _search(self, message: m.SearchJobs) -> Page:
        try:
            return await self._call(
                partial(
                    self._repository.search,
                    message.where,
                    limit=message.limit,
                    cursor=message.cursor,
                    rows=SEARCH_ROWS,
                    visible=message.visible,
                )
            )
        except ValueError:
            raise _invalid_cursor(message.cursor) from None

    def _checkpoint_soon(self) -> None:
        self._checkpoint_by = min(self._checkpoint_by, trio.current_time() + CHECKPOINT_SECONDS)

    async def _checkpoint_now_and_then(self, *, quiet: bool) -> None:
        """Have finished jobs in the main file: in quiet times soon, else after so many; others a little later."""
        if quiet or self._since_checkpoint >= CHECKPOINT_JOBS or trio.current_time() >= self._checkpoint_by:
            self._since_checkpoint, self._checkpoint_by = 0, math.inf
            await self._call(self._repository.checkpoint)

    async def _warn_if_new(self) -> None:
        """Say so when nothing is in the store although images are there: its files may have been lost."""
        if self._retention is None or not self._repository.never_used():
            return
        if await self._call(self._retention.files.has_images):
            logger.warning(
                "the job store is new, so the images that are in generation.output_dir are not listed: right for those "
                "of `mflux-api generate`; if a server made them, put a backup of its database into jobs.state_dir"
            )

    async def _expire_regularly(self) -> NoReturn:
        while True:
            await trio.sleep(EXPIRE_SECONDS)
            with suppress(MailboxFull):
                self._mailbox.put_nowait(m.ExpireJobs(), control=False)

    async def _expire(self) -> None:
        if self._retention is None:
            return
        now = self._clock.now()
        try:
            spare = await self._kept_jobs()
            removed = await self._call(partial(expire, self._repository, self._retention, now=now, spare=spare))
        except ServiceError as error:
            stuck: str | None = type(error).__name__
        else:
            stuck = removed.stuck
        if stuck is not None:
            # What is too old now is too old at the next pass as well.
            logger.warning("finished jobs cannot be removed now: %s", stuck)

    def _spared(self) -> frozenset[str]:
        now = trio.current_time()
        self._unread = {job_id: until for job_id, until in self._unread.items() if until > now}
        return frozenset(self._unread)

    async def _kept_jobs(self) -> frozenset[str]:
        """Return the jobs that do not expire now: where that cannot be read, none may.

        Raises:
            ServiceError: the storage cannot be read.
        """
        undelivered = await self._call(self._repository.owners_of_undelivered) if self._delivers else {}
        return self._spared() | undelivered.keys()

    async def _prune(self, message: m.PruneJobs) -> Removed:
        if self._retention is None:
            return Removed(jobs=(), stuck=None)
        spare = await self._kept_jobs()
        return await self._call(
            partial(
                prune,
                self._repository,
                self._retention,
                now=self._clock.now(),
                older_than=message.older_than,
                dry_run=message.dry_run,
                spare=spare,
            )
        )

    async def _bound_images(self, retention: Retention, limit: int) -> NoReturn:
        """Keep the images within ``jobs.max_images_gb``, in a thread beside the store's own."""
        while True:
            await self._images_changed.wait()
            self._images_changed = trio.Event()
            spare = self._spared() | self._running
            try:
                await run_in_thread(partial(retention.files.remove_oldest, limit, spare=spare))
            except OSError as error:
                logger.warning("images beyond jobs.max_images_gb cannot be removed now: %s", error.strerror)

    async def _remove_abandoned_images(self) -> None:
        """Remove the images of synchronous jobs in which an earlier process died: no row will ever point to them."""
        if self._retention is None:
            return
        files = self._retention.files

        def tidy() -> None:
            stuck: OSError | None = None
            for job in self._repository.abandoned():
                try:
                    files.discard_all(job.id, job.created_at, job.images)
                except OSError as error:
                    stuck = error
            if stuck is not None:
                raise stuck
            self._repository.forget_abandoned()

        if not self._repository.abandoned():
            return
        try:
            await self._call(tidy)
        except (ServiceError, OSError) as error:
            logger.warning("images of a server that was killed stay until the next start: %s", type(error).__name__)


def _invalid_cursor(cursor: str | None) -> InvalidParameter:
    return InvalidParameter.for_field(
        "cursor", "is invalid: take it from 'next_cursor' of the page before", value=cursor, limit="a next_cursor"
    )


def _requeue(message: m.Requeue) -> Callable[[Job], Job]:
    return lambda job: jobs.requeue(job, engine_died=message.engine_died, service_died=message.service_died)


def _finish(message: m.Finish) -> Callable[[Job], Job]:
    outcome = message.outcome

    def change(job: Job) -> Job:
        if job.status.terminal:
            return job
        job = jobs.add_warnings(job, message.warnings)
        match outcome:
            case m.Completed():
                return jobs.complete(job, outcome.images, outcome.timings, _now(), device=outcome.device)
            case m.Failed():
                return jobs.fail(job, outcome.failure, _now(), images=outcome.images, progress=outcome.progress)
            case m.JobWasCancelled():
                return jobs.cancel(job, _now(), images=outcome.images, progress=outcome.progress)
            case _:
                assert_never(outcome)

    return change


def _now() -> datetime:
    return datetime.now(UTC)

"""Questions about jobs that were accepted: how they are, how they end, and that they are to end."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta

import attrs
import trio

from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.actors import messages as m
from mflux_api.errors import JobGone, JobNotFound, ServiceRestarting
from mflux_api.gateway.event_stream import EventStream
from mflux_api.gateway.questions import RETRY_SECONDS, Questions
from mflux_api.jobs.job import Job, Status
from mflux_api.jobs.progress import Finished
from mflux_api.jobs.search import JobFilter
from mflux_api.storage.repository import Page
from mflux_api.storage.retention import Removed

SEARCH_SECONDS = 2.0
"""After which a search answers with what it has found, and a cursor."""


@attrs.frozen(kw_only=True)
class JobView:
    """A job with what is only known while it is unfinished."""

    job: Job
    live: m.JobSnapshot | None
    viewer: str | None = None
    """Who looks at it, where that is known: some of it is for its owner alone."""


class Jobs(Questions):
    """Looking at jobs, following them, cancelling them, and removing the records of old ones."""

    async def job(self, job_id: str, *, visible: Visibility = ALL_JOBS) -> JobView:
        """Return one job as it is now.

        Args:
            job_id: the job.
            visible: which jobs there are for the caller, here as in the other questions.

        Raises:
            JobNotFound: there is none with that id, or it is not visible.
        """
        job = await self._job(job_id, visible)
        if job.status.terminal:
            return JobView(job=job, live=None)
        live = (await self._ask(self._to.scheduler, m.GetSnapshots(job_ids=(job_id,)))).get(job_id)
        if live is None:
            # It ended between the two questions.
            job = await self._job(job_id)
        return JobView(job=job, live=live)

    async def jobs(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        status: Status | None = None,
        visible: Visibility = ALL_JOBS,
    ) -> tuple[tuple[JobView, ...], str | None]:
        """Return a page of jobs, newest first, and the cursor of the next one."""
        page: Page = await self._ask(
            self._to.store, m.ListJobs(limit=limit, cursor=cursor, status=status, visible=visible)
        )
        return await self._views(page.jobs), page.next_cursor

    async def _views(self, jobs: tuple[Job, ...]) -> tuple[JobView, ...]:
        unfinished = tuple(job.id for job in jobs if not job.status.terminal)
        question = m.GetSnapshots(job_ids=unfinished)
        snapshots = await self._ask(self._to.scheduler, question) if unfinished else {}
        return tuple([await self._view(job, snapshots.get(job.id)) for job in jobs])

    async def search(
        self, where: JobFilter, *, limit: int = 50, cursor: str | None = None, visible: Visibility = ALL_JOBS
    ) -> tuple[tuple[JobView, ...], str | None]:
        """Return a page of the jobs that are found, newest first, and the cursor of the next one.

        A search in a long list ends after :data:`SEARCH_SECONDS`: its page may have few jobs or none, and a next one.
        """
        found: list[Job] = []
        end = trio.current_time() + SEARCH_SECONDS
        while True:
            question = m.SearchJobs(where=where, limit=limit - len(found), cursor=cursor, visible=visible)
            page: Page = await self._ask(self._to.store, question)
            found += page.jobs
            cursor = page.next_cursor
            if cursor is None or len(found) >= limit or trio.current_time() >= end:
                return await self._views(tuple(found)), cursor

    async def _view(self, job: Job, live: m.JobSnapshot | None) -> JobView:
        """A job of a page as it is now: one that has ended since, as it ended, if it is still there."""
        if job.status.terminal or live is not None:
            return JobView(job=job, live=live)
        with suppress(JobNotFound, JobGone):
            job = await self._job(job.id)
        return JobView(job=job, live=None)

    async def queue(self) -> m.QueueListing:
        """Return the running jobs, those that are due first, and how many wait."""
        return await self._ask(self._to.scheduler, m.GetQueue())

    async def snapshots(self) -> Mapping[str, m.JobSnapshot]:
        """Return the jobs of :meth:`queue`."""
        return (await self.queue()).jobs

    async def cancel(self, job_id: str, *, visible: Visibility = ALL_JOBS) -> Job:
        """Cancel a job and return it; a finished one is returned as it is.

        Raises:
            JobNotFound: there is none with that id, or it is not visible.
        """
        if visible != ALL_JOBS:
            # A job's owner never changes.
            await self._job(job_id, visible)
        job = await self._ask(self._to.scheduler, m.CancelJob(job_id=job_id))
        if job is None:
            raise _unknown(job_id)
        return job

    def caller_done(self, job_id: str) -> None:
        """Say that the caller of a synchronous job has read what it wanted: retention may take the job now."""
        self._to.store.tell_latest(m.CallerDone(job_id=job_id), key=(m.CallerDone, job_id))

    async def prune(self, older_than: timedelta, *, dry_run: bool) -> Removed:
        """Remove the records of jobs that finished longer ago than that, or only say which they are."""
        return await self._ask(self._to.store, m.PruneJobs(older_than=older_than, dry_run=dry_run))

    async def follow(
        self,
        job_id: str,
        last_event_id: str | None = None,
        *,
        previews: bool = False,
        partial_images: Callable[[Job], bool] = lambda _: False,
        visible: Visibility = ALL_JOBS,
    ) -> EventStream:
        """Follow a job's events; use the result as an async context manager and iterate over it.

        Args:
            job_id: the job.
            last_event_id: the event after which to go on; with the terminal event's own the stream has ended.
            previews: also follow events that carry a small image of what an image is coming to.
            partial_images: whether also to follow the partial images that the job's request asked for.
            visible: which jobs there are for the caller.

        Raises:
            JobNotFound: there is none with that id, or it is not visible.
            ShuttingDown: it goes on at the next start only.
        """
        job = await self._job(job_id, visible)
        question = m.Subscribe(
            job_id=job_id, last_event_id=last_event_id, previews=previews, partial_images=partial_images(job)
        )
        subscription = await self._ask(self._to.hub, question)
        if previews and not job.status.terminal:
            self._to.scheduler.tell_latest(m.WantPreviews(job_id=job_id), key=(m.WantPreviews, job_id))
        try:
            # Read after subscribing: an end that this row does not show yet will come through the channel. The record
            # may be gone by then, when few are kept.
            with suppress(JobGone):
                job = await self._job(job_id)
        except BaseException:
            subscription.channel.close()
            raise

        async def look() -> Job:
            return (await self.job(job_id)).job

        return EventStream(job, subscription, look, last_event_id=last_event_id)

    async def follow_all(self, last_event_id: str | None = None, *, visible: Visibility = ALL_JOBS) -> m.Feed:
        """Follow all jobs; close the channel of the result to end it.

        Args:
            last_event_id: the event after which to go on.
            visible: which jobs there are for the caller.

        Raises:
            ShuttingDown: nothing more will happen here.
        """
        return await self._ask(self._to.hub, m.FollowAll(visible=visible, last_event_id=last_event_id))

    async def finished(self, job_id: str) -> Job:
        """Wait until a job has ended and return it."""
        while True:
            try:
                async with await self.follow(job_id) as stream:
                    async for logged in stream:
                        if isinstance(logged.event, Finished):
                            return logged.event.job
            except ServiceRestarting:
                # A part of the service was restarted under us; the job goes on.
                await trio.sleep(RETRY_SECONDS)

    async def awaited_end(self, job_id: str) -> m.JobEnd:
        """Wait until a job has ended and return it, for a caller that must not wait for a disk.

        Raises:
            JobNotFound: there is none with that id.
            DiskFull: its end cannot be written now; the job ends when it can.
        """
        while True:
            try:
                end = await self._ask(self._to.scheduler, m.AwaitEnd(job_id=job_id))
            except ServiceRestarting:
                # The scheduler was restarted and takes the job up again.
                await trio.sleep(RETRY_SECONDS)
                continue
            if end is None:
                raise _unknown(job_id)
            return end

    async def _job(self, job_id: str, visible: Visibility = ALL_JOBS) -> Job:
        job = await self._ask(self._to.store, m.GetJob(job_id=job_id, visible=visible))
        if job is None:
            raise _unknown(job_id)
        return job


def _unknown(job_id: str) -> JobNotFound:
    shown = job_id[:32]
    return JobNotFound(f"Job '{shown}' not found", {"job_id": shown})

"""The job store: the one place that knows what became of every job."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import NoReturn, TypeVar, assert_never

import trio

from mflux_api import jobs
from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Mailbox
from mflux_api.errors import InvalidParameter
from mflux_api.jobs import InvalidTransition, Job
from mflux_api.storage.repository import Repository
from mflux_api.supervisor import Started

T = TypeVar("T")


class JobStore:
    """Serializes every change of every job; the repository's calls run in one thread of its own."""

    def __init__(self, mailbox: Mailbox[m.StoreMessage], repository: Repository) -> None:
        self._mailbox = mailbox
        self._repository = repository
        self._thread = trio.CapacityLimiter(1)

    async def run(self, status: Started) -> NoReturn:
        """Serve the mailbox until cancelled."""
        status.started()
        while True:
            message = await self._mailbox.receive()
            match message:
                case m.Insert():
                    await self._call(partial(self._repository.insert, message.job))
                    message.reply.ok(None)
                case m.Begin():
                    await self._change(message, lambda job: jobs.start(job, _now()))
                case m.Requeue():
                    await self._change(message, _requeued(message))
                case m.Finish():
                    await self._change(message, _finished(message.outcome))
                case m.GetJob():
                    message.reply.ok(await self._call(partial(self._repository.get, message.job_id)))
                case m.ListJobs():
                    await self._list(message)
                case m.Unfinished():
                    message.reply.ok(await self._call(self._repository.unfinished))
                case m.GetTotals():
                    message.reply.ok(await self._call(self._repository.totals))
                case _:
                    assert_never(message)

    async def _call(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, limiter=self._thread)

    async def _change(self, message: m.Begin | m.Requeue | m.Finish, change: Callable[[Job], Job]) -> None:
        def read_change_write() -> Job:
            job = self._repository.get(message.job_id)
            if job is None:
                raise InvalidTransition(f"job {message.job_id} is not in the store")
            changed = change(job)
            if changed is not job:
                self._repository.replace(changed)
            return changed

        try:
            changed = await self._call(read_change_write)
        except InvalidTransition as error:
            # The asker lost a race, or asks for a job that retention removed: its problem, not the store's.
            message.reply.fail(error)
        else:
            message.reply.ok(changed)

    async def _list(self, message: m.ListJobs) -> None:
        try:
            page = await self._call(
                lambda: self._repository.page(limit=message.limit, cursor=message.cursor, status=message.status)
            )
        except ValueError:
            message.reply.fail(
                InvalidParameter(
                    "'cursor' is invalid: take it from 'next_cursor' of the page before",
                    {"field": "cursor", "value": message.cursor, "limit": "a next_cursor"},
                )
            )
        else:
            message.reply.ok(page)


def _requeued(message: m.Requeue) -> Callable[[Job], Job]:
    return lambda job: jobs.requeue(job, engine_died=message.engine_died, service_died=message.service_died)


def _finished(outcome: m.Outcome) -> Callable[[Job], Job]:
    def change(job: Job) -> Job:
        if job.status.terminal:
            return job
        match outcome:
            case m.Completed():
                return jobs.complete(job, outcome.images, outcome.timings, _now())
            case m.Failed():
                return jobs.fail(job, outcome.failure, _now(), images=outcome.images, progress=outcome.progress)
            case m.Cancelled():
                return jobs.cancel(job, _now(), images=outcome.images, progress=outcome.progress)
            case _:
                assert_never(outcome)

    return change


def _now() -> datetime:
    return datetime.now(UTC)

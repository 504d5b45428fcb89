"""A halted job on its way back into the queue, while the store is asked: what else may happen in that moment."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Address, Mailbox
from mflux_api.actors.scheduler.draining import Draining
from mflux_api.actors.scheduler.endings import Endings
from mflux_api.actors.scheduler.entries import Entry, JobEvent, JobState
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.actors.scheduler.retries import Retries
from mflux_api.config import SchedulerSettings
from mflux_api.errors import DiskFull
from mflux_api.jobs.job import Job, Status
from tests.support.crew import a_job


async def _nothing(_: object) -> None:
    pass


class HaltedJob:
    """The scheduler's parts around one running job that was just halted; the test answers for the store."""

    def __init__(self, nursery: trio.Nursery, *, synchronous: bool = False) -> None:
        self.store: Mailbox[m.StoreMessage] = Mailbox(m.JOB_STORE)
        nothing: Any = SimpleNamespace()
        queue = JobQueue(nothing)
        self.endings = Endings(
            queue,
            nursery,
            store=self._to(self.store),
            hub=self._to(Mailbox(m.EVENT_HUB)),
            stats=self._to(Mailbox(m.STATS)),
            settled=lambda: None,
        )
        self.draining = Draining(queue, self.endings, begun=False)
        self._retries = Retries(
            queue,
            self.endings,
            self.draining,
            settings=SchedulerSettings(),
            advice=nothing,
            publish=lambda _: None,
            enqueue=queue.enqueue,
            discard_images=_nothing,
            settled=lambda: None,
        )
        self.entry: Entry = queue.add(a_job(synchronous=synchronous))
        for event in (JobEvent.KEPT, JobEvent.DISPATCHED, JobEvent.HALT):
            self.entry.on(event)
        self.entry.kept.set()
        self.entry.scope.cancel()
        nursery.start_soon(self._retries.requeue_halted, self.entry)

    @staticmethod
    def _to(mailbox: Mailbox[Any]) -> Address[Any]:
        return Address(mailbox, sender=m.SCHEDULER, asks=m.ASK_GRAPH)

    async def requeue(self) -> m.Requeue:
        """Answer the first question of the job's task, and return its second."""
        first = await self.store.receive()
        assert isinstance(first, m.GetJob)
        first.reply.ok(self.running())
        second = await self.store.receive()
        assert isinstance(second, m.Requeue)
        return second

    def running(self) -> Job:
        """The job as the store has it."""
        return attrs.evolve(self.entry.job, status=Status.GENERATING)


@asynccontextmanager
async def halted_job(*, synchronous: bool = False) -> AsyncIterator[tuple[HaltedJob, trio.Nursery]]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            yield HaltedJob(nursery, synchronous=synchronous), nursery
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("checkpoints", range(4))
async def test_cancel_in_the_moment_of_the_stores_answer_wins(checkpoints: int) -> None:
    """The order of tasks within one moment is random: so, many times."""
    for _ in range(20):
        async with halted_job() as (halted, nursery):
            requeue = await halted.requeue()
            nursery.start_soon(halted.endings.answer_cancel, m.CancelJob(job_id=halted.entry.job.id))
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            requeue.reply.ok(halted.entry.job)
            finish = await halted.store.receive()
            assert isinstance(finish, m.Finish)
            await wait_all_tasks_blocked()
            assert halted.entry.state is JobState.ENDING


async def test_synchronous_job_is_refused_when_the_drain_begins_meanwhile() -> None:
    async with halted_job(synchronous=True) as (halted, _):
        requeue = await halted.requeue()
        halted.draining.drain(m.Drain())
        requeue.reply.ok(halted.entry.job)
        finish = await halted.store.receive()
        assert isinstance(finish, m.Finish)
        assert isinstance(finish.outcome, m.Failed)
        assert finish.outcome.failure.code == "SHUTTING_DOWN"


async def test_drain_does_not_wait_for_a_disk_that_is_full(autojump_clock: MockClock) -> None:
    async with halted_job() as (halted, _):
        drain = m.Drain(halt=True)
        halted.draining.drain(drain)
        (await halted.requeue()).reply.fail(DiskFull("scripted"))
        await wait_all_tasks_blocked()
        halted.draining.answer_when_quiet()
        assert drain.reply.answered
        assert halted.entry.state is JobState.WAITING


async def test_full_disk_is_asked_again_while_nothing_drains(autojump_clock: MockClock) -> None:
    async with halted_job() as (halted, _):
        (await halted.requeue()).reply.fail(DiskFull("scripted"))
        (await halted.requeue()).reply.ok(halted.entry.job)
        await wait_all_tasks_blocked()
        assert halted.entry.state is JobState.WAITING

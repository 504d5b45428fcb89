"""The actor over the real store and a receiver that is played, in virtual time."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from mflux_api.actors import messages as m
from mflux_api.actors.job_store import JobStore
from mflux_api.actors.mailbox import Address, Mailbox
from mflux_api.actors.webhooks.signing import Signer
from mflux_api.actors.webhooks.target import Target
from mflux_api.actors.webhooks.webhooks import RELOAD_SECONDS, Webhooks
from mflux_api.config import WebhookSettings
from mflux_api.errors import DiskFull
from mflux_api.jobs.job import Job
from mflux_api.jobs.webhook import Attempt, DeliveryState, Webhook
from mflux_api.storage.in_memory import InMemoryRepository
from mflux_api.storage.repository import Repository
from mflux_api.storage.sqlite import SqliteRepository
from tests.support.crew import a_job, running
from tests.support.harness import run_inline
from tests.support.stored_jobs import completed

START = datetime(2026, 5, 1, tzinfo=UTC)
DOWN = Attempt(error="the receiver answered 503")
SETTINGS = WebhookSettings(enabled=True, max_attempts=4)


def now() -> datetime:
    return START + timedelta(seconds=trio.current_time())


@attrs.define
class Receiver:
    """Plays every receiver: what it answers, how long it takes, and when it was asked for what."""

    answers: list[Attempt] = attrs.field(factory=list)
    seconds: Callable[[str], float] = lambda host: 0.0
    asked: list[tuple[float, str, str]] = attrs.field(factory=list)
    most: int = 0
    _under_way: int = 0

    async def send(self, target: Target, headers: Mapping[str, str], body: bytes) -> Attempt:
        self.asked.append((round(trio.current_time(), 3), target.host, headers["webhook-id"]))
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        try:
            await trio.sleep(self.seconds(target.host))
        finally:
            self._under_way -= 1
        return self.answers.pop(0) if self.answers else Attempt()

    def times(self) -> list[float]:
        return [at for at, *_ in self.asked]


async def body(job: Job) -> bytes:
    return job.id.encode()


class Crew:
    """The actor and the store."""

    def __init__(self, repository: Repository, receiver: Receiver, settings: WebhookSettings) -> None:
        self.repository = repository
        store: Mailbox[m.StoreMessage] = Mailbox(m.JOB_STORE)
        self.mailbox: Mailbox[m.WebhooksMessage] = Mailbox(m.WEBHOOKS)
        self.job_store = JobStore(store, repository, delivers=True)
        self.actor = Webhooks(
            self.mailbox,
            Address(store, sender=m.WEBHOOKS, asks=m.ASK_GRAPH),
            settings,
            signer=Signer((bytes(32),)),
            sender=receiver,
            make_body=body,
            now=now,
            jitter=lambda: 1.0,
        )

    def end(self, job: Job) -> Job:
        """Have a job end now, and tell the actor."""
        ended = end(self.repository, job, now())
        Address(self.mailbox, sender=m.SCHEDULER, asks=m.ASK_GRAPH).tell_latest(m.DeliveryDue(job=ended), key=job.id)
        return ended

    async def drain(self) -> None:
        await Address(self.mailbox, sender=m.GATEWAY, asks=m.ASK_GRAPH).ask(m.DrainDeliveries())


def end(repository: Repository, job: Job, at: datetime) -> Job:
    repository.insert(job)
    ended = completed(job, at=at)
    repository.replace(ended)
    return ended


def with_webhook(host: str = "a.example", owner: str = "") -> Job:
    job = a_job(owner=owner)
    return attrs.evolve(job, request=attrs.evolve(job.request, webhook=Webhook(url=f"https://{host}/hook")))


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)


@asynccontextmanager
async def a_crew(
    receiver: Receiver, repository: Repository | None = None, settings: WebhookSettings = SETTINGS
) -> AsyncIterator[Crew]:
    crew = Crew(repository or InMemoryRepository(), receiver, settings)
    async with running(crew.job_store.run), running(crew.actor.run):
        yield crew


def delivery(repository: Repository, job: Job) -> tuple[DeliveryState, int, str | None]:
    found = repository.get(job.id)
    assert isinstance(found, Job)
    assert found.delivery is not None
    return found.delivery.state, found.delivery.attempts, found.delivery.last_error


async def test_end_is_delivered_at_once_and_once(autojump_clock: MockClock) -> None:
    receiver = Receiver()
    async with a_crew(receiver) as crew:
        job = crew.end(with_webhook())
        await trio.sleep(3 * RELOAD_SECONDS)
        assert receiver.asked == [(0.0, "a.example", f"msg_{job.id}")]
        assert delivery(crew.repository, job) == (DeliveryState.DELIVERED, 1, None)


async def test_receiver_that_is_down_is_asked_again_later_with_the_same_id(autojump_clock: MockClock) -> None:
    receiver = Receiver([DOWN, DOWN])
    async with a_crew(receiver) as crew:
        job = crew.end(with_webhook())
        await trio.sleep(1)
        assert delivery(crew.repository, job) == (DeliveryState.PENDING, 1, DOWN.error)
        await trio.sleep(3600)
        assert receiver.times() == [0, 5, 25]
        assert {name for *_, name in receiver.asked} == {f"msg_{job.id}"}
        assert delivery(crew.repository, job) == (DeliveryState.DELIVERED, 3, None)


async def test_it_is_given_up_after_the_last_attempt(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver([DOWN] * 9)
    async with a_crew(receiver) as crew:
        job = crew.end(with_webhook())
        await trio.sleep(86400)
        assert receiver.times() == [0, 5, 25, 105]
        assert delivery(crew.repository, job) == (DeliveryState.FAILED, 4, DOWN.error)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == f"job {job.id}: its webhook was given up after 4 attempt(s): {DOWN.error}"


async def test_receiver_that_hangs_holds_up_no_other_and_ties_up_few_places(autojump_clock: MockClock) -> None:
    receiver = Receiver(seconds=lambda host: 10.0 if host == "slow.example" else 0.0)
    async with a_crew(receiver) as crew:
        for _ in range(20):
            crew.end(with_webhook("slow.example"))
        await trio.sleep(0.1)
        crew.end(with_webhook("quick.example"))
        await trio.sleep(1)
        assert [host for _, host, _ in receiver.asked] == ["slow.example"] * 2 + ["quick.example"]
        await trio.sleep(200)
        assert len(receiver.asked) == 21


async def test_number_of_deliveries_under_way_is_bounded(autojump_clock: MockClock) -> None:
    receiver = Receiver(seconds=lambda host: 1.0)
    async with a_crew(receiver) as crew:
        for n in range(100):
            crew.end(with_webhook(f"{n}.example.com", owner=str(n)))
        await trio.sleep(60)
        assert (len(receiver.asked), receiver.most) == (100, 16)


async def test_what_no_message_told_of_is_found_in_the_store(autojump_clock: MockClock) -> None:
    receiver = Receiver()
    async with a_crew(receiver) as crew:
        await trio.sleep(1)
        end(crew.repository, with_webhook(), now())
        await trio.sleep(RELOAD_SECONDS)
        assert receiver.times() == [RELOAD_SECONDS]


async def test_kill_between_the_commit_and_the_delivery_costs_no_message(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The process ends with the row committed and no actor told; so it does once more during an attempt."""
    path, job = tmp_path / "jobs.sqlite3", with_webhook()
    with SqliteRepository(path) as repository:
        end(repository, job, now())
    hanging = Receiver(seconds=lambda host: math.inf)
    with SqliteRepository(path) as repository:
        async with a_crew(hanging, repository):
            await trio.sleep(1)
            assert len(hanging.asked) == 1
    receiver = Receiver()
    with SqliteRepository(path) as repository:
        async with a_crew(receiver, repository):
            await trio.sleep(1)
        assert [name for *_, name in receiver.asked] == [f"msg_{job.id}"]
    with SqliteRepository(path) as repository:
        assert delivery(repository, job) == (DeliveryState.DELIVERED, 1, None)


async def test_attempts_and_age_count_across_restarts(autojump_clock: MockClock, tmp_path: Path) -> None:
    path, job = tmp_path / "jobs.sqlite3", with_webhook()
    receiver = Receiver([DOWN] * 9)
    with SqliteRepository(path) as repository:
        end(repository, job, now())
        async with a_crew(receiver, repository):
            await trio.sleep(1)
    await trio.sleep(25 * 3600)
    with SqliteRepository(path) as repository:
        async with a_crew(receiver, repository):
            await trio.sleep(1)
        assert delivery(repository, job) == (DeliveryState.FAILED, 2, DOWN.error)


async def test_actor_that_is_restarted_goes_on_where_it_was(autojump_clock: MockClock) -> None:
    repository, receiver = InMemoryRepository(), Receiver(seconds=lambda host: 1.0)
    crew = Crew(repository, receiver, SETTINGS)
    async with running(crew.job_store.run):
        async with running(crew.actor.run):
            job = crew.end(with_webhook())
            await trio.sleep(0.5)
        crew.mailbox.fail_in_flight()
        async with running(crew.actor.run):
            await trio.sleep(2)
        assert receiver.times() == [0, 0.5]
        assert delivery(repository, job) == (DeliveryState.DELIVERED, 1, None)


async def test_drain_begins_nothing_and_waits_for_what_is_under_way(autojump_clock: MockClock) -> None:
    receiver = Receiver(seconds=lambda host: 8.0)
    async with a_crew(receiver) as crew:
        jobs = [crew.end(with_webhook()) for _ in range(3)]
        await crew.drain()
        assert trio.current_time() == 8.0
        assert [delivery(crew.repository, job)[0].value for job in jobs] == ["delivered", "delivered", "pending"]
        crew.end(with_webhook("b.example"))
        await trio.sleep(3 * RELOAD_SECONDS)
        assert len(receiver.asked) == 2
        await crew.drain()


class FullDisk(InMemoryRepository):
    """Cannot keep what became of a delivery, until there is room."""

    full = False

    def replace(self, job: Job) -> None:
        if self.full and job.status.terminal:
            raise DiskFull("No space is left")
        super().replace(job)


async def test_delivery_on_a_full_disk_is_made_once_and_noted_when_there_is_room(autojump_clock: MockClock) -> None:
    repository, receiver = FullDisk(), Receiver()
    async with a_crew(receiver, repository) as crew:
        job = with_webhook()
        ended = end(repository, job, now())
        repository.full = True
        crew.mailbox.put_latest(m.DeliveryDue(job=ended), key=job.id)
        await trio.sleep(1000)
        assert delivery(repository, job)[0] is DeliveryState.PENDING
        repository.full = False
        await trio.sleep(1000)
        assert delivery(repository, job)[0] is DeliveryState.DELIVERED
        assert len(receiver.asked) == 1


async def test_rules_that_became_stricter_since_the_job_was_accepted_count(autojump_clock: MockClock) -> None:
    receiver = Receiver()
    async with a_crew(receiver) as crew:
        job = crew.end(with_webhook("10.0.0.1"))
        await trio.sleep(1)
        state, attempts, error = delivery(crew.repository, job)
        assert (state, attempts, receiver.asked) == (DeliveryState.FAILED, 1, [])
        assert error is not None
        assert "webhooks.allow_private_addresses" in error

"""The webhooks actor: every due delivery is attempted, and what became of it is kept; the store is the truth."""

import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, NoReturn, Protocol, assert_never

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone, ActorStopped, Address, Mailbox, Reply
from mflux_api.actors.webhooks.outbox import Entry, Outbox
from mflux_api.actors.webhooks.signing import Signer
from mflux_api.actors.webhooks.target import Target, read_target
from mflux_api.config import WebhookSettings
from mflux_api.errors import ConfigError, InvalidParameter, JobGone, ServiceError
from mflux_api.jobs.job import Job
from mflux_api.jobs.webhook import Attempt, Delivery, DeliveryState, RetryPolicy, after_attempt, is_due
from mflux_api.supervisor import Started
from mflux_api.version import package_version

RELOAD_SECONDS: Final = 600.0
"""Between two looks at what the store has: what a restart elsewhere kept from being told is found then."""
STORE_RETRY_SECONDS: Final = 5.0

MakeBody = Callable[[Job], Awaitable[bytes]]

logger = logging.getLogger(__name__)


class Sender(Protocol):
    """Sends one message: :class:`~mflux_api.actors.webhooks.sender.HttpSender`."""

    async def send(self, target: Target, headers: Mapping[str, str], body: bytes) -> Attempt:
        """Send a body once, and return what became of it."""


class Webhooks:
    """Delivers at least once: a receiver knows by ``webhook-id`` what it has already."""

    def __init__(
        self,
        mailbox: Mailbox[m.WebhooksMessage],
        store: Address[m.StoreMessage],
        settings: WebhookSettings,
        *,
        signer: Signer,
        sender: Sender,
        make_body: MakeBody,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Take what it works with.

        Args:
            mailbox: what it is told and asked.
            store: where deliveries are kept.
            settings: how often and for how long.
            signer: signs messages.
            sender: sends one.
            make_body: returns a finished job as JSON.
            now: the time of day.
            jitter: 0 to 1, at random.
        """
        self._mailbox = mailbox
        self._store = store
        self._signer = signer
        self._sender = sender
        self._make_body = make_body
        self._now = now
        self._jitter = jitter
        self._allow_private = settings.allow_private_addresses
        self._policy = RetryPolicy(max_attempts=settings.max_attempts, max_age=timedelta(hours=settings.max_age_hours))
        # Also of an actor that is restarted.
        self._draining = False

    async def run(self, status: Started) -> NoReturn:
        """Serve the mailbox until cancelled."""
        self._outbox = Outbox()
        self._changed = trio.Event()
        self._drains: list[Reply[None]] = []
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._load_regularly)
            nursery.start_soon(self._begin_when_due)
            status.started()
            while True:
                message = await self._mailbox.receive()
                match message:
                    case m.DeliveryDue():
                        self._add(message.job)
                    case m.DrainDeliveries():
                        self._draining = True
                        self._drains.append(message.reply)
                        self._answer_drains()
                    case _:
                        assert_never(message)

    async def _load_regularly(self) -> NoReturn:
        while True:
            wait = RELOAD_SECONDS
            try:
                for job in await self._store.ask(m.GetUndelivered()):
                    self._add(job)
            except (ServiceError, ActorGone) as error:
                logger.debug("webhooks: the store cannot be read now (%s)", type(error).__name__)
                wait = STORE_RETRY_SECONDS
            await trio.sleep(wait)

    async def _begin_when_due(self) -> NoReturn:
        while True:
            # The clock may be set meanwhile, so no wait is a long one.
            wait = RELOAD_SECONDS if self._draining else self._outbox.seconds_to_next(self._now())
            with trio.move_on_after(min(wait, RELOAD_SECONDS)):
                await self._changed.wait()
            self._changed = trio.Event()
            self._begin()

    def _add(self, job: Job) -> None:
        webhook = job.request.webhook
        host = "" if webhook is None else self._host(webhook.url)
        entry = Entry.of(job, host)
        if entry is not None:
            self._outbox.add(entry)
            self._begin()
            self._changed.set()

    def _host(self, url: str) -> str:
        try:
            return read_target(url, allow_private=True).host
        except InvalidParameter:
            # The attempt says so.
            return ""

    def _begin(self) -> None:
        while not self._draining and (entry := self._outbox.begin(self._now())) is not None:
            self._nursery.start_soon(self._attempt, entry)

    def _answer_drains(self) -> None:
        if self._outbox.idle:
            for reply in self._drains:
                reply.ok(None)
            self._drains.clear()

    async def _attempt(self, entry: Entry) -> None:
        again = await self._deliver(entry)
        self._outbox.end(entry)
        if again is not None:
            self._outbox.add(again)
        self._begin()
        self._changed.set()
        self._answer_drains()

    async def _deliver(self, entry: Entry) -> Entry | None:
        """Attempt a delivery, and return what is left to be done of it."""
        try:
            job = await self._store.ask(m.GetJob(job_id=entry.job_id))
        except JobGone:
            return None
        except (ServiceError, ActorGone) as error:
            logger.debug("job %s: it cannot be read for its webhook (%s)", entry.job_id, type(error).__name__)
            return attrs.evolve(entry, due=self._now() + timedelta(seconds=STORE_RETRY_SECONDS))
        if job is None or (current := Entry.of(job, entry.host)) is None or not is_due(current.due, self._now()):
            # Known from a look at the store that is older than the last attempt.
            return None if job is None else Entry.of(job, entry.host)
        delivery = await self._send(job)
        await self._record(job.id, delivery)
        return Entry.of(attrs.evolve(job, delivery=delivery), entry.host)

    async def _send(self, job: Job) -> Delivery:
        assert job.delivery is not None
        assert job.completed_at is not None
        attempt = await self._try(job)
        delivery = after_attempt(
            job.delivery, attempt, self._policy, ended=job.completed_at, now=self._now(), jitter=self._jitter()
        )
        match delivery.state:
            case DeliveryState.DELIVERED:
                logger.debug("job %s: its webhook was delivered", job.id)
            case DeliveryState.PENDING:
                logger.debug("job %s: its webhook is tried again: %s", job.id, delivery.last_error)
            case DeliveryState.FAILED:
                logger.warning(
                    "job %s: its webhook was given up after %d attempt(s): %s",
                    job.id,
                    delivery.attempts,
                    delivery.last_error,
                )
        return delivery

    async def _try(self, job: Job) -> Attempt:
        assert job.request.webhook is not None
        try:
            target = read_target(job.request.webhook.url, allow_private=self._allow_private)
            body = await self._make_body(job)
        except InvalidParameter as error:
            # The settings are others than when it was accepted.
            return Attempt(error=error.message, final=True)
        except (ServiceError, ConfigError) as error:
            logger.warning("job %s: the message of its webhook cannot be made: %s", job.id, error)
            return Attempt(error="this server could not make the message; its log says why")
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"mflux-api/{package_version()}",
            **self._signer.headers(f"msg_{job.id}", int(self._now().timestamp()), body),
        }
        return await self._sender.send(target, headers, body)

    async def _record(self, job_id: str, delivery: Delivery) -> None:
        """Have an attempt kept, however long that takes: one that is forgotten is made again."""
        record = partial(m.RecordDelivery, job_id=job_id, delivery=delivery)
        while True:
            try:
                await self._store.ask(record())
            except ActorStopped:
                return
            except (ServiceError, ActorGone) as error:
                logger.debug("job %s: its webhook's state cannot be kept now (%s)", job_id, type(error).__name__)
                await trio.sleep(STORE_RETRY_SECONDS)
            else:
                return

"""Mailboxes, addresses and replies: how actors send each other messages, and nothing else.

A mailbox has two bounded lanes, control before work, and before both the newest of each kind of news. It belongs to the
supervisor: it outlives the actor that reads it, and queued messages survive that actor's restart. A message that the
actor had taken and not answered is lost with it, and its asker gets :class:`ActorGone`, never a hang.
"""

import logging
import math
from collections.abc import Hashable, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar

import attrs
import trio

logger = logging.getLogger(__name__)

M = TypeVar("M")
T = TypeVar("T")

WORK_CAPACITY = 256
CONTROL_CAPACITY = 1024


class ActorGone(Exception):
    """The actor that was asked ended before it answered, or has stopped for good."""


class ActorStopped(ActorGone):
    """The actor has stopped for good; asking again is of no use."""


class ActorSuspended(ActorGone):
    """The actor keeps failing and is started again only after a while."""


class MailboxFull(Exception):
    """``tell_nowait`` found no room in the lane."""


class Reply(Generic[T]):
    """A one-shot channel for the answer to one message; answering never blocks."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[T | BaseException](1)
        self._answered = False

    @property
    def wanted(self) -> bool:
        """Whether the asker still waits."""
        return self._send.statistics().open_receive_channels > 0

    def ok(self, value: T) -> bool:
        """Answer; returns ``False`` when the asker is gone, else it gets the answer for certain."""
        return self._put(value)

    def fail(self, error: BaseException) -> bool:
        """Answer with an exception, raised in the asker."""
        return self._put(error)

    def abandon(self) -> None:
        """End the question without an answer: the asker gets :class:`ActorGone`."""
        self._answered = True
        self._send.close()

    @property
    def answered(self) -> bool:
        """Whether nothing more is owed to the asker."""
        return self._answered

    def _put(self, value: T | BaseException) -> bool:
        if self._answered:
            raise RuntimeError("a message is answered once")
        self._answered = True
        try:
            self._send.send_nowait(value)
        except trio.BrokenResourceError:
            return False
        finally:
            self._send.close()
        return True

    async def receive(self, asked: str) -> T:
        """Wait for the answer. What :meth:`ok` called taken arrives, even while the asker is being cancelled.

        Raises:
            ActorGone: there will be no answer.
        """
        with self._receive:
            try:
                answer = await self._take()
            except trio.EndOfChannel:
                raise ActorGone(asked) from None
        if isinstance(answer, BaseException):
            try:
                raise answer
            finally:
                # Its traceback holds this frame: together they would keep what the asker holds until the next
                # collection, 64 MB of images for instance.
                del answer
        return answer

    async def _take(self) -> T | BaseException:
        try:
            return await self._receive.receive()
        except trio.Cancelled:
            # The answer may have come in the same moment. It may be a lease, so the asker gets it now, and the
            # cancellation at its next checkpoint.
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                answer = self._receive.receive_nowait()
                if not isinstance(answer, BaseException):
                    return answer
            raise


@attrs.frozen(kw_only=True)
class Ask(Generic[T]):
    """Base of every message that expects an answer of type ``T``."""

    reply: Reply[T] = attrs.field(factory=Reply, eq=False, repr=False)


class Mailbox(Generic[M]):
    """The receiving side; one per actor name, kept across restarts."""

    def __init__(
        self,
        name: str,
        *,
        role: str | None = None,
        work_capacity: int = WORK_CAPACITY,
        control_capacity: int = CONTROL_CAPACITY,
    ) -> None:
        """Take the actor's name and, where several actors do the same for different things, what they are."""
        self.name = name
        self.role = role or name
        self._work_in, self._work_out = trio.open_memory_channel[M](work_capacity)
        self._control_in, self._control_out = trio.open_memory_channel[M](control_capacity)
        self._latest: dict[Hashable, M] = {}
        # One token per queued message, so that one await serves all lanes.
        self._wakeups_in, self._wakeups = trio.open_memory_channel[None](math.inf)
        self._in_flight: list[Reply[Any]] = []
        self._closed = False
        self._suspended = False

    async def receive(self) -> M:
        """Take the next message: news first, then the control lane."""
        await self._wakeups.receive()
        message = self._next()
        if isinstance(message, Ask):
            self._in_flight = [reply for reply in self._in_flight if not reply.answered]
            self._in_flight.append(message.reply)
        return message

    def _next(self) -> M:
        if self._latest:
            return self._latest.pop(next(iter(self._latest)))
        try:
            return self._control_out.receive_nowait()
        except trio.WouldBlock:
            return self._work_out.receive_nowait()

    def fail_in_flight(self) -> None:
        """The reading actor ended: everything it took and did not answer is lost."""
        for reply in self._in_flight:
            if not reply.answered:
                reply.abandon()
        self._in_flight.clear()

    def suspend(self) -> None:
        """The actor is away for a while: every asker is told so at once, until :meth:`resume`; news waits for it."""
        self._suspended = True
        self.fail_in_flight()
        self._fail_queued(ActorSuspended)

    def resume(self) -> None:
        """The actor is about to be started again."""
        self._suspended = False

    def close(self) -> None:
        """The actor will not come back: every asker is told so, and nothing more is taken."""
        if self._closed:
            return
        self._closed = True
        for reply in self._in_flight:
            if not reply.answered:
                reply.fail(ActorStopped(self.name))
        self._in_flight.clear()
        self._fail_queued(ActorStopped)
        for lane in (self._control_out, self._work_out):
            lane.close()

    def _fail_queued(self, error: type[ActorGone]) -> None:
        for lane in (self._control_out, self._work_out):
            while True:
                try:
                    message = lane.receive_nowait()
                except trio.WouldBlock:
                    break
                if isinstance(message, Ask) and not message.reply.answered:
                    message.reply.fail(error(self.name))
        # Not one token for each: a message that has just found room has not brought its own yet, and never will.
        with suppress(trio.WouldBlock):
            while True:
                self._wakeups.receive_nowait()
        for _ in self._latest:
            self._wakeups_in.send_nowait(None)

    def queued(self) -> int:
        """Messages waiting in all lanes."""
        return self._wakeups.statistics().current_buffer_used

    async def put(self, message: M, *, control: bool) -> None:
        """Queue a message, waiting for room.

        Raises:
            ActorStopped: the mailbox is closed.
            ActorSuspended: its actor is away for a while.
        """
        self._check_open()
        try:
            await (self._control_in if control else self._work_in).send(message)
        except trio.BrokenResourceError:
            raise ActorStopped(self.name) from None
        # Closed or suspended between the message's way in and now, it has taken the message along.
        self._check_open()
        self._wakeups_in.send_nowait(None)

    def put_nowait(self, message: M, *, control: bool) -> None:
        """Queue a message if there is room.

        Raises:
            ActorStopped: the mailbox is closed.
            ActorSuspended: its actor is away for a while.
            MailboxFull: the lane is full.
        """
        self._check_open()
        try:
            (self._control_in if control else self._work_in).send_nowait(message)
        except trio.BrokenResourceError:
            raise ActorStopped(self.name) from None
        except trio.WouldBlock:
            raise MailboxFull(self.name) from None
        self._wakeups_in.send_nowait(None)

    def put_latest(self, message: M, *, key: Hashable) -> None:
        """Queue news; it replaces older news under the same key that was not read yet, so there is always room.

        Raises:
            ActorStopped: the mailbox is closed.
        """
        if self._closed:
            raise ActorStopped(self.name)
        if key not in self._latest:
            self._wakeups_in.send_nowait(None)
        self._latest[key] = message

    def _check_open(self) -> None:
        if self._closed:
            raise ActorStopped(self.name)
        if self._suspended:
            raise ActorSuspended(self.name)


def send_lossy(channel: trio.MemorySendChannel[T], value: T) -> None:
    """Send without waiting what may be lost: when there is no room, or no reader any more."""
    try:
        channel.send_nowait(value)
    except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        logger.debug("a %s was dropped (%s)", type(value).__name__, type(error).__name__)


class Address(Generic[M]):
    """The sending side, made out to one sender: what an actor knows of another."""

    def __init__(self, mailbox: Mailbox[M], *, sender: str, asks: Mapping[str, frozenset[str]]) -> None:
        self._mailbox = mailbox
        self._sender = sender
        self._may_ask = mailbox.role in asks.get(sender, frozenset())

    @property
    def name(self) -> str:
        """The receiver's name."""
        return self._mailbox.name

    async def tell(self, message: M, *, control: bool = False) -> None:
        """Send, waiting while the receiver's lane is full.

        Raises:
            ActorStopped: the receiver has stopped for good.
            ActorSuspended: the receiver is away for a while.
        """
        await self._mailbox.put(message, control=control)

    def tell_nowait(self, message: M, *, control: bool = False) -> None:
        """Send without waiting.

        Raises:
            ActorStopped: the receiver has stopped for good.
            ActorSuspended: the receiver is away for a while.
            MailboxFull: the receiver's lane is full.
        """
        self._mailbox.put_nowait(message, control=control)

    def tell_lossy(self, message: M, *, control: bool = False) -> None:
        """Send without waiting what may be lost: when there is no room, or no receiver any more."""
        try:
            self._mailbox.put_nowait(message, control=control)
        except (MailboxFull, ActorGone) as error:
            logger.debug("%s: a %s was dropped (%s)", self.name, type(message).__name__, type(error).__name__)

    def tell_latest(self, message: M, *, key: Hashable) -> None:
        """Send news without waiting; it replaces what the receiver has not read yet under the same key.

        Only a receiver that has stopped for good does not get it.
        """
        try:
            self._mailbox.put_latest(message, key=key)
        except ActorStopped:
            logger.debug("%s has stopped and takes no news", self.name)

    async def ask(self, message: Ask[T], *, control: bool = False) -> T:
        """Send a message and wait for its answer.

        Raises:
            ActorGone: the receiver ended before it answered; :class:`ActorStopped` when it will not come back,
                :class:`ActorSuspended` when it will be away for a while.
            RuntimeError: the ask graph of :mod:`mflux_api.actors.messages` has no such edge.
        """
        if not self._may_ask:
            raise RuntimeError(f"{self._sender} may not ask {self.name}: the ask graph has no such edge")
        await self._mailbox.put(message, control=control)  # type: ignore[arg-type]
        return await message.reply.receive(self.name)

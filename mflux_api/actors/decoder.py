"""The decoder: has what strangers sent read by children, which are killed with the order that takes too much.

A child is started by the first order that finds none. It does one order at a time; the others wait in a bounded line,
in which callers take turns.
"""

import logging
from collections import deque
from typing import Final

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Mailbox
from mflux_api.errors import InternalError, ServerBusy, ServiceError
from mflux_api.images.child.client import Abandoned, Decoded, DecoderChild, DecoderOptions
from mflux_api.ipc.child_process import ChildDied
from mflux_api.ipc.frames import ProtocolError
from mflux_api.supervisor import Started

logger = logging.getLogger(__name__)

CHILDREN = 2
MAX_WAITING = 64
"""Orders in the line: what they hold is counted with the bodies of their requests, so this bounds the wait alone."""
KEPT_BYTES = 256 * 2**20
"""A child that holds more after an order is replaced: not all that Pillow frees goes back to the system."""
MAX_ORDERS = 500
"""Orders after which a child is replaced: a codec that leaks does not leak for ever."""
START_TRIES = 3
RETRY_SECONDS = 0.5

DEFAULT_OPTIONS: Final = DecoderOptions()


class WaitingLine:
    """Orders that wait: those of running jobs first, then one of each caller in turn."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._urgent = deque[m.Decode]()
        self._callers = dict[str, deque[m.Decode]]()
        self._idle = list[trio.Event]()

    def __len__(self) -> int:
        return len(self._urgent) + sum(map(len, self._callers.values()))

    def put(self, message: m.Decode) -> m.Decode | None:
        """Add an order; return the one that has to leave for it, where the line is full of orders that are wanted.

        That is the last order of the caller who has most in the line, the new one among them.
        """
        leaves: m.Decode | None = None
        if message.urgent:
            self._urgent.append(message)
        else:
            if len(self) >= self._limit:
                self._drop_unwanted()
            self._callers.setdefault(message.caller, deque()).append(message)
            if len(self) > self._limit:
                leaves = self._take_last(message.caller)
        if self._idle and leaves is not message:
            self._idle.pop().set()
        return leaves

    def _take_last(self, newest: str) -> m.Decode:
        """Take the last order of the longest caller out; of several as long, of the newest."""
        caller = max((newest, *self._callers), key=lambda each: len(self._callers[each]))
        line = self._callers[caller]
        message = line.pop()
        if not line:
            del self._callers[caller]
        return message

    async def take(self) -> m.Decode:
        """Wait for the next order whose asker still waits.

        Who came last is served first: the children that have worked work on, and no second one starts for nothing.
        """
        while (message := self._next()) is None:
            event = trio.Event()
            self._idle.append(event)
            await event.wait()
        return message

    def _next(self) -> m.Decode | None:
        while self._urgent or self._callers:
            message = self._urgent.popleft() if self._urgent else self._next_of_callers()
            if message.reply.wanted:
                return message
            message.reply.abandon()
        return None

    def _next_of_callers(self) -> m.Decode:
        caller = next(iter(self._callers))
        line = self._callers.pop(caller)
        message = line.popleft()
        if line:
            # Behind all others.
            self._callers[caller] = line
        return message

    def _drop_unwanted(self) -> None:
        for caller, line in list(self._callers.items()):
            for message in line:
                if not message.reply.wanted:
                    message.reply.abandon()
            self._callers[caller] = deque(message for message in line if message.reply.wanted)
            if not self._callers[caller]:
                del self._callers[caller]


class Decoder:
    """Children, and the orders that wait for them."""

    def __init__(self, mailbox: Mailbox[m.DecoderMessage], options: DecoderOptions = DEFAULT_OPTIONS) -> None:
        self._mailbox = mailbox
        self._options = options

    async def run(self, status: Started) -> None:
        """Serve the mailbox until cancelled; then no child is left."""
        line = WaitingLine(MAX_WAITING)
        async with trio.open_nursery() as nursery:
            for _ in range(CHILDREN):
                nursery.start_soon(_Place(nursery, line, self._options).run)
            status.started()
            while True:
                # No name for it here: it would be kept until the next one comes.
                _enqueue(line, await self._mailbox.receive())


def _enqueue(line: WaitingLine, message: m.Decode) -> None:
    leaves = line.put(message)
    if leaves is not None:
        leaves.reply.fail(
            ServerBusy("Too many images wait to be decoded; try again in a moment", {"limit": MAX_WAITING})
        )


@attrs.define(eq=False)
class _Place:
    """Where one child stands, from its start until another takes its place."""

    _nursery: trio.Nursery
    _line: WaitingLine
    _options: DecoderOptions
    _child: DecoderChild | None = None

    async def run(self) -> None:
        try:
            while True:
                await self._serve(await self._line.take())
        finally:
            # At rest it leaves by itself; at work it is killed.
            with trio.CancelScope(shield=True):
                await self._end_child(force=False)

    async def _serve(self, message: m.Decode) -> None:
        try:
            outcome = await self._perform(message)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._end_child(force=True)
            raise
        except Abandoned:
            message.reply.abandon()
        except Exception as defect:
            # After a restart the next order of its kind would meet it again, and in the end take the whole tree along.
            logger.error("decoder: a defect: %s", type(defect).__name__)
            logger.debug("decoder: a defect", exc_info=defect)
            await self._end_child(force=True)
            message.reply.fail(InternalError("The service failed on this image; the log has the details"))
        else:
            if isinstance(outcome, ServiceError):
                message.reply.fail(outcome)
            else:
                message.reply.ok(outcome)
        await self._replace_used_up()

    async def _perform(self, message: m.Decode) -> Decoded | ServiceError:
        for attempt in range(START_TRIES):
            if attempt:
                await trio.sleep(RETRY_SECONDS * attempt)
            try:
                child = await self._living_child()
                return await child.perform(message.order, message.blobs, lambda: message.reply.wanted)
            except ChildDied as died:
                # Before it had begun: nothing in the order is to blame.
                logger.warning("decoder: a child died: %s", died.reason)
                await self._end_child(force=True)
            except ProtocolError as error:
                logger.debug("decoder: %s", error)
                return message.order.refuse(0, "is too large to decode")
        # Descriptors or memory may be short, which passes.
        return ServerBusy("The image decoder cannot be started; try again in a moment, or see the log")

    async def _living_child(self) -> DecoderChild:
        if self._child is not None and not self._child.alive:
            await self._end_child(force=True)
        if self._child is None:
            self._child = await DecoderChild.start(self._nursery, self._options)
            logger.debug("decoder %d is ready", self._child.pid)
        return self._child

    async def _replace_used_up(self) -> None:
        child = self._child
        if child is None:
            return
        if not child.alive:
            await self._end_child(force=True)
        elif child.orders >= MAX_ORDERS or child.resident_bytes > KEPT_BYTES:
            await self._end_child(force=False)

    async def _end_child(self, *, force: bool) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.aclose(force=force)

"""Whose request is worked on next: few at a time, and clients that ask all the time behind those that do not."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

MOST_AT_WORK: Final = 8
"""Each request at work makes all others wait some tenths of a millisecond, some twenty times."""

WORK_SECONDS: Final = 0.1
"""What is at work for longer waits for something else, such as a job, and is counted no more."""

BUSY_SHARE: Final = 4
"""One in so many turns is theirs while others wait too."""

BUSY_SECONDS: Final = 0.02
"""A connection that asks again within this time after its answer asks all the time."""

URGENT_BUSY_SECONDS: Final = 0.005
"""The same of one that asks for health, which costs little: a monitor may ask fifty times a second."""


class Turns:
    """The requests of one server that are being worked on, and those that wait for that."""

    def __init__(self) -> None:
        self._at_work: OrderedDict[Turn, float] = OrderedDict()
        self._waiting: tuple[OrderedDict[Turn, None], OrderedDict[Turn, None]] = (OrderedDict(), OrderedDict())
        self._count = 0
        self.heads = trio.Lock(), trio.Lock()
        """Held while the head of a request is read; the second by connections that ask all the time."""
        self.reading = trio.Lock()
        """Held between two pieces of reading."""

    def turn(self) -> Turn:
        """Return the turns of one connection."""
        return Turn(self)

    async def _take(self, turn: Turn, *, busy: bool) -> None:
        queue = self._waiting[busy]
        turn.wake = trio.Event()
        queue[turn] = None
        try:
            self._let_go_on()
            while turn in queue:
                # Woken when its turn has come, or when one that is at work has had its time.
                oldest = next(iter(self._at_work.values()), -math.inf)
                with trio.move_on_at(oldest + WORK_SECONDS):
                    await turn.wake.wait()
                self._let_go_on()
        except BaseException:
            self._release(turn)
            raise
        finally:
            queue.pop(turn, None)

    def _release(self, turn: Turn) -> None:
        if self._at_work.pop(turn, None) is not None:
            self._let_go_on()

    def _let_go_on(self) -> None:
        now = trio.current_time()
        while self._at_work and next(iter(self._at_work.values())) + WORK_SECONDS <= now:
            self._at_work.popitem(last=False)
        others, busy = self._waiting
        while (others or busy) and len(self._at_work) < MOST_AT_WORK:
            # Behind the others, and not for ever.
            self._count += 1
            queue = busy if busy and (not others or self._count % BUSY_SHARE == 0) else others
            turn, _ = queue.popitem(last=False)
            self._at_work[turn] = now
            turn.wake.set()


class Turn:
    """One connection's place in the turns; it has one request at a time."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._last = -math.inf
        self.wake = trio.Event()

    def _is_busy(self, *, urgent: bool) -> bool:
        return trio.current_time() - self._last < (URGENT_BUSY_SECONDS if urgent else BUSY_SECONDS)

    async def read_head(self, *, urgent: bool = False) -> None:
        """Wait until a part of a head may be read: one in each turn of the loop, as a head may take milliseconds.

        Args:
            urgent: do not wait, unless the connection asks all the time.
        """
        busy = self._is_busy(urgent=urgent)
        if busy or not urgent:
            async with self._turns.heads[busy]:
                pass

    async def take(self, *, urgent: bool = False) -> None:
        """Wait until the request may be worked on.

        Args:
            urgent: do not wait, unless the connection asks all the time.
        """
        busy = self._is_busy(urgent=urgent)
        if busy or not urgent:
            await self._turns._take(self, busy=busy)

    def release(self) -> None:
        """Say that the request needs no more work than its answer's sending; again, it does nothing."""
        self._last = trio.current_time()
        self._turns._release(self)

    async def let_others_read(self) -> None:
        """Wait in line between two pieces of reading that cost much: one connection does such work at a time."""
        async with self._turns.reading:
            await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def set_aside(self) -> AsyncIterator[None]:
        """Let others work while the request waits for its client or for a job, then wait for another turn."""
        self._turns._release(self)
        yield
        await self._turns._take(self, busy=False)

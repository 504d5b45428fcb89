"""Calls in worker threads, whose waits end: a thread cannot be killed, so what waits for it must be able to leave."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import Timer
from typing import TypeVar, TypeVarTuple, Unpack, cast

import attrs
import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ThreadAbandoned(Exception):
    """The thread did not come back in time; what it does is not known."""


class ThreadWaits:
    """What one supervised child waits for in threads; its supervisor can end these waits."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._over = False

    def bind(self) -> None:
        """Count the calls of this task, and of all that it starts from now on, as this child's."""
        _current.set(self)

    def abandon(self) -> int:
        """Leave every thread to itself, and start no more of them; return how many there were."""
        self._over = True
        for scope in self._scopes:
            scope.cancel()
        return len(self._scopes)

    def open(self) -> trio.CancelScope:
        """Return a scope that nothing but :meth:`abandon` cancels."""
        scope = trio.CancelScope(shield=True)
        if self._over:
            scope.cancel()
        self._scopes.add(scope)
        return scope

    def close(self, scope: trio.CancelScope) -> None:
        """Forget a scope that has been left."""
        self._scopes.discard(scope)


_current: ContextVar[ThreadWaits] = ContextVar("waits for threads")


async def run_in_thread(
    function: Callable[[Unpack[Ts]], T], *arguments: *Ts, limiter: trio.CapacityLimiter | None = None
) -> T:
    """Run a function that changes something, and wait for its end, also when cancelled.

    The wait ends without the thread only when the supervisor gives up the child that waits.

    Raises:
        ThreadAbandoned: it was given up in a part that is shielded from its cancellation.
    """
    limiter = limiter or trio.to_thread.current_default_thread_limiter()
    waits, place = _current.get(None) or ThreadWaits(), _Place(limiter)
    # A cancelled call that waits for its turn is not made.
    await limiter.acquire_on_behalf_of(place)
    scope = waits.open()
    try:
        with scope:
            return await trio.to_thread.run_sync(
                function, *arguments, limiter=cast("trio.CapacityLimiter", place), abandon_on_cancel=True
            )
    finally:
        waits.close(scope)
        if not place.passed_on:
            limiter.release_on_behalf_of(place)
    await trio.lowlevel.checkpoint_if_cancelled()
    raise ThreadAbandoned("a thread did not come back")


async def read_in_thread(
    function: Callable[[Unpack[Ts]], T], *arguments: *Ts, limiter: trio.CapacityLimiter | None = None
) -> T:
    """Run a function that only reads or computes; a cancelled caller leaves it to itself at once."""
    return await trio.to_thread.run_sync(function, *arguments, limiter=limiter, abandon_on_cancel=True)


@contextmanager
def move_on_after_real(seconds: float) -> Iterator[None]:
    """Leave the block after so many seconds of the system's clock: a test's clock jumps while a thread works."""
    token = trio.lowlevel.current_trio_token()
    with trio.CancelScope() as scope:

        def leave() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)

        timer = Timer(seconds, leave)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@attrs.define(eq=False)
class _Place:
    """A place of a limiter that was taken before the thread starts, and is free when the thread has ended."""

    _limiter: trio.CapacityLimiter
    passed_on: bool = False

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        self.passed_on = True

    def release_on_behalf_of(self, borrower: object) -> None:
        self._limiter.release_on_behalf_of(self)

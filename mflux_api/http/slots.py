"""How many of one thing callers may have at one time, together and each: uploads, event streams, calls without jobs."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from mflux_api.errors import ServerBusy, ServiceError, TooManyConnections


class Slots:
    """One slot for each thing that is open."""

    def __init__(self, what: str, *, total: int, per_caller: int, full: type[ServiceError] = ServerBusy) -> None:
        """Take the limits.

        Args:
            what: the thing's name for an error, in the plural.
            total: how many all callers may have.
            per_caller: how many one may have.
            full: the error where all callers together have all of them.
        """
        self._what = what
        self._total = total
        self._per_caller = per_caller
        self._full = full
        self._taken = Counter[str]()
        self._freed = trio.Event()

    @property
    def taken(self) -> int:
        """How many slots are taken."""
        return self._taken.total()

    @contextmanager
    def slot(self, caller: str) -> Iterator[None]:
        """Take a slot while the block lasts.

        Raises:
            TooManyConnections: the caller has all that it may have.
            ServiceError: all callers together have; which one is told at the start.
        """
        refusal = self._refusal(caller)
        if refusal is not None:
            raise refusal
        self._taken[caller] += 1
        try:
            yield
        finally:
            self._taken[caller] -= 1
            if not self._taken[caller]:
                del self._taken[caller]
            self._freed.set()
            self._freed = trio.Event()

    async def wait(self, caller: str, seconds: float) -> None:
        """Wait until there may be a slot for the caller, or so long."""
        with trio.move_on_after(seconds):
            while self._refusal(caller) is not None:
                await self._freed.wait()

    def _refusal(self, caller: str) -> ServiceError | None:
        if self._taken[caller] >= self._per_caller:
            return TooManyConnections(
                f"You have {self._per_caller} {self._what} already; end one, or try again in a moment"
            )
        if self.taken >= self._total:
            return self._full(f"{self._total} {self._what} go on already; try again in a moment")
        return None

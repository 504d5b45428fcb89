"""Evidence that a child was ended for want of memory: the system counts its kills, but not whose child it was."""

from collections.abc import Callable

from mflux_api import machine


class OOMEvidence:
    """The kills that the system counted; each is evidence for the death of one child, whichever engine's it was."""

    def __init__(self, count: Callable[[], int] = machine.oom_kills) -> None:
        self._count = count
        self._claimed: set[int] = set()

    def now(self) -> int:
        """Return how many kills there have been, for a child that starts now."""
        return self._count()

    def claim(self, since: int) -> bool:
        """Take one of the kills that were counted since a child's start; return whether there was one left."""
        free = [kill for kill in range(since, self._count()) if kill not in self._claimed]
        if free:
            self._claimed.add(free[0])
        return bool(free)

"""How long the connections of one server wait for their clients, and that all of it ends with the server."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

MOST_LINGERING = 64
"""Clients that are read after their answer at one time; of more the first is left. Each costs a part of every turn."""


class ClientTimeouts:
    """How long the connections of one server wait for a request's head, for an answer to be taken, for the end."""

    def __init__(self, stall_seconds: float, linger_seconds: float, head_seconds: float) -> None:
        self.stall_seconds = stall_seconds
        self.head_seconds = head_seconds
        self.linger_seconds = linger_seconds
        self._deadline = float("inf")
        self._scopes: set[trio.CancelScope] = set()
        self._lingering: dict[trio.CancelScope, None] = {}

    @contextmanager
    def shield(self) -> Iterator[trio.CancelScope]:
        """Shield one send from cancellation, for `stall_seconds` at most and never beyond `finish_by`."""
        deadline = min(trio.current_time() + self.stall_seconds, self._deadline)
        with trio.CancelScope(shield=True, deadline=deadline) as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    @contextmanager
    def linger(self) -> Iterator[None]:
        """Bound how long one client is read after its answer; `finish_by` ends that at once."""
        seconds = self.linger_seconds if self._deadline == float("inf") else 0.0
        while len(self._lingering) >= MOST_LINGERING:
            oldest = next(iter(self._lingering))
            del self._lingering[oldest]
            oldest.cancel("others have been answered since")
        with trio.move_on_after(seconds) as scope:
            self._lingering[scope] = None
            try:
                yield
            finally:
                self._lingering.pop(scope, None)

    def finish_by(self, deadline: float) -> None:
        """Let no send, running or to come, outlast `deadline` (in Trio's time), and end all lingering."""
        for lingering in self._lingering:
            lingering.cancel("the server ends")
        self._deadline = min(self._deadline, deadline)
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, self._deadline)

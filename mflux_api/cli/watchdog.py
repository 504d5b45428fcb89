"""Ends the process when its shutdown is stuck: a thread of its own, because the event loop may be what is stuck."""

import os
import queue
import threading
import time
from types import TracebackType

from mflux_api.cli.standard_error import print_within

_LINE = "mflux-api: the shutdown is stuck: ending the process; unfinished jobs go on at the next start"
_LINE_SECONDS = 0.2
"""What writing the line may take: the other end of standard error may have stopped reading."""


class Watchdog:
    """Once armed, ends the process when the block has not ended in time; leaving the block ends its thread.

    What was acknowledged is safe: the store is durable against the death of the process, and the engine child ends
    at the end-of-file that it brings.
    """

    def __init__(self, status: int) -> None:
        self._status = status
        # Its put() may be called in a signal handler, which a lock may not.
        self._orders: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._orders.put(None)
        self._thread.join()

    def arm(self, seconds: float) -> None:
        """End the process in so many seconds, if not sooner; may be called in a signal handler."""
        self._orders.put(time.monotonic() + seconds)

    def _watch(self) -> None:
        deadline: float | None = None
        while True:
            left = None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
            try:
                order = self._orders.get(timeout=left)
            except queue.Empty:
                self._kill()
                return
            if order is None:
                return
            deadline = order if deadline is None else min(deadline, order)

    def _kill(self) -> None:
        try:
            print_within(_LINE_SECONDS, _LINE)
        finally:
            os._exit(self._status)

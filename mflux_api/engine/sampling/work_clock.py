"""How long a pass takes, without its consumer."""

import time
from collections.abc import Iterator

from mflux_api.engine.sampling.passes import Event


class WorkClock:
    """Wall time of the work alone: a generator also sleeps while its consumer handles an event."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def pausing(self, event: Event) -> Iterator[Event]:
        paused = time.perf_counter()
        yield event
        self._start += time.perf_counter() - paused

    def lap(self) -> float:
        now = time.perf_counter()
        elapsed, self._start = now - self._start, now
        return elapsed

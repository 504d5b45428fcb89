"""How long each stage of a pass takes, without the time that the consumer of its events takes."""

import time
from collections.abc import Iterator

from mflux_api.engine.sampling.passes import DoneEvent, Event


class WorkClock:
    """Wall time of the work alone: a generator also sleeps while its consumer handles an event."""

    def __init__(self) -> None:
        self.laps: list[float] = []
        """Seconds of the stages that are over."""
        self._start = time.perf_counter()

    def pausing(self, event: Event) -> Iterator[Event]:
        """Yield an event with the clock stopped until the consumer comes back."""
        paused = time.perf_counter()
        yield event
        self._start += time.perf_counter() - paused

    def lap(self) -> None:
        """End a stage: note its seconds of work."""
        now = time.perf_counter()
        self.laps.append(now - self._start)
        self._start = now

    def done(self) -> DoneEvent:
        """Return the last event of a pass, which had three stages."""
        encode_s, denoise_s, decode_s = self.laps
        return DoneEvent(encode_s, denoise_s, decode_s)

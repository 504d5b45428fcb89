"""Which engine will be free when, as jobs are given to them one after another: what ETAs are made of."""

from collections.abc import Callable, Sequence

from mflux_api.actors import messages as m
from mflux_api.engine.interface import EngineId
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.resolve import ResolvedRequest


class EnginePlan:
    """The seconds until each engine is free; ``None`` where a job of an unknown length comes first."""

    def __init__(self, engines: Sequence[m.EngineStatus], estimates: Estimates) -> None:
        self._estimates = estimates
        # Without an engine there is one that nothing is known of.
        self._busy: dict[EngineId, float | None] = {engine.id: 0.0 for engine in engines} or {"": 0.0}
        self._devices = {engine.id: engine.device for engine in engines}
        self._known: dict[tuple[object, ...], float | None] = {}

    @property
    def several(self) -> bool:
        """Whether there is a choice of engines."""
        return len(self._busy) > 1

    def take(self, request: ResolvedRequest, engine: EngineId | None, *, step: int, image: int) -> float | None:
        """Give a job to an engine, the first that is free unless one is named, and return when it ends."""
        if engine not in self._busy:
            engine = min(self._busy, key=lambda each: _or_last(self._busy[each]))
        seconds = self._seconds(request, engine, step, image)
        before = self._busy[engine]
        after = self._busy[engine] = None if before is None or seconds is None else before + seconds
        return None if after is None else round(after, 1)

    def add_ahead(self, seconds_on: Callable[[str | None], float | None]) -> None:
        """Give jobs to all engines alike.

        Args:
            seconds_on: how long all of them take on a kind of device, one after the other.
        """
        known = [engine for engine, seconds in self._busy.items() if seconds is not None]
        costs = [seconds_on(self._devices.get(engine)) for engine in known]
        total = sum(self._busy[engine] or 0.0 for engine in known)
        for engine, seconds in zip(known, costs, strict=True):
            if seconds is None:
                self._busy[engine] = None
            elif seconds > 0:
                self._busy[engine] = (total + seconds) / len(known)

    def _seconds(self, request: ResolvedRequest, engine: EngineId, step: int, image: int) -> float | None:
        # Jobs of a long queue are of few kinds.
        size = request.size
        kind = (engine, request.model, len(request.init_images), size, request.steps_run, request.num_images)
        key = (*kind, step, image)
        if key not in self._known:
            self._known[key] = self._estimates.remaining(request, self._devices.get(engine), step=step, image=image)
        return self._known[key]


def _or_last(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds

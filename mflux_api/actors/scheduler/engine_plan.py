"""Which engine will be free when, as jobs are given to them one after another: what ETAs are made of."""

from collections.abc import Callable, Collection, Iterable, Sequence

import attrs

from mflux_api.actors import messages as m
from mflux_api.engine.interface import EngineId
from mflux_api.jobs.estimates import Estimates, Kind
from mflux_api.jobs.resolve import ResolvedRequest

_EVERY_ENGINE = ""
"""Stands for the engine where there is none; nothing is known of it."""


@attrs.frozen(kw_only=True)
class Done:
    """How far a job is that runs; one that waits has nothing done."""

    loaded: float = 0.0
    """Share of its model's load, 0 to 1."""
    begun: bool = False
    """Whether its first step has begun."""
    steps: int = 0
    """Of all images that are not saved yet, together."""
    images: int = 0
    """On disk."""
    seconds: float = 0.0
    """Since it came so far."""


NOTHING_DONE = Done()


class EnginePlan:
    """The seconds until each engine is free; ``None`` where a job of an unknown length comes first."""

    def __init__(
        self,
        engines: Sequence[m.EngineStatus],
        estimates: Estimates,
        together: Collection[frozenset[str]] = (),
    ) -> None:
        """Take what the plan begins with.

        Args:
            engines: those that will run the jobs.
            estimates: how long jobs and loads take.
            together: pairs of models that were in one engine's memory together; of any others one makes room.
        """
        self._estimates = estimates
        self._together = together
        # Without an engine there is one that nothing is known of.
        self._busy: dict[EngineId, float | None] = {engine.id: 0.0 for engine in engines} or {_EVERY_ENGINE: 0.0}
        self._devices = {engine.id: engine.device for engine in engines}
        self._models = {engine.id: frozenset(engine.models) for engine in engines} or {_EVERY_ENGINE: frozenset[str]()}
        self._known: dict[tuple[object, ...], float | None] = {}
        self.load_seconds = 0.0
        """Of all loads that are planned."""

    @property
    def several(self) -> bool:
        """Whether there is a choice of engines."""
        return len(self._busy) > 1

    def has_loads(self, models: Iterable[str]) -> bool:
        """Whether jobs on some models need loads of which it is known how long they take."""
        return any(
            model not in self._models[engine] and self._estimates.load(model, device) > 0
            for model in models
            for engine, device in self._devices.items()
        )

    def models_at_hand(self) -> Collection[str]:
        """Return the models in the memory of the engines that are free first."""
        first = min(_or_last(seconds) for seconds in self._busy.values())
        free = [self._models[engine] for engine, seconds in self._busy.items() if _or_last(seconds) == first]
        return frozenset[str]().union(*free)

    def take(self, request: ResolvedRequest, engine: EngineId | None, done: Done = NOTHING_DONE) -> float | None:
        """Give a job to an engine, the first that is free unless one is named, and return when it ends."""
        if engine not in self._busy:
            engine = min(
                self._busy, key=lambda each: (_or_last(self._busy[each]), request.model not in self._models[each])
            )
        seconds = self.seconds(request, engine, done)
        if request.model not in self._models[engine]:
            stay = {other for other in self._models[engine] if frozenset((other, request.model)) in self._together}
            self._models[engine] = frozenset({request.model, *stay})
            self.load_seconds += self._estimates.load(request.model, self._devices.get(engine))
        before = self._busy[engine]
        after = self._busy[engine] = None if before is None or seconds is None else before + seconds
        return None if after is None else round(after, 2)

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

    def seconds(self, request: ResolvedRequest, engine: EngineId, done: Done = NOTHING_DONE) -> float | None:
        """Return how long a job still keeps an engine; ``None`` where that is not known."""
        left = self._run_seconds(request, engine, done)
        if left is None:
            return None
        resident = request.model in self._models[engine] or done.begun
        load = 0.0 if resident else self._estimates.load(request.model, self._devices.get(engine)) * (1 - done.loaded)
        if done.seconds <= 0:
            return left + load
        # What is under way may take longer than it should, but what comes after it does not take less for that.
        return left + load - min(done.seconds, load or self._under_way(request, engine, done))

    def _under_way(self, request: ResolvedRequest, engine: EngineId, done: Done) -> float:
        """Return how long what a running job does now takes as a whole."""
        rates = self._estimates.rates(Kind.of(request), request.width * request.height, self._devices.get(engine))
        if rates is None:
            return 0.0
        if not done.begun:
            return rates.start
        images = request.num_images - done.images
        return rates.rest if done.steps >= request.steps_run * images else rates.step * images

    def _run_seconds(self, request: ResolvedRequest, engine: EngineId, done: Done) -> float | None:
        # Jobs of a long queue are of few kinds.
        size = (request.width, request.height, request.steps, request.image_strength, request.num_images)
        what = (request.model, len(request.init_images), len(request.lora_files), request.guidance, request.low_ram)
        key = (engine, *size, *what, done.begun, done.steps, done.images)
        if key not in self._known:
            self._known[key] = self._estimates.remaining(
                request, self._devices.get(engine), begun=done.begun, step=done.steps, image=done.images
            )
        return self._known[key]


def _or_last(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds

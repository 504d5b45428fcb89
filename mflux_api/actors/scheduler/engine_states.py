"""The engines as their loaders tell of them: which can be given a job, and whether there is one to hope for."""

from collections.abc import Collection, Sequence

import attrs

from mflux_api.actors import messages as m
from mflux_api.engine.interface import EngineId
from mflux_api.errors import EngineUnavailable

_GONE = frozenset({m.EngineCondition.DEGRADED, m.EngineCondition.FAILED})
"""An engine that is so is given no job, until it comes back."""


class EngineStates:
    """What is known of each engine. One that was not heard of is not given work, and is not given up either."""

    def __init__(self, engines: Collection[EngineId]) -> None:
        self._engines = tuple(engines)
        self._heard: dict[EngineId, m.EngineStatus] = {}

    def note(self, status: m.EngineStatus) -> None:
        """Take what a loader says of its engine."""
        self._heard[status.id] = status

    def forget_child(self, dead: m.EngineStatus | None) -> None:
        """What a job's task hears of a death comes before the loader's word: the models are gone with the child."""
        if dead is None:
            return
        known = self._heard[dead.id]
        if known.incarnation == dead.incarnation:
            self._heard[dead.id] = attrs.evolve(known, models=(), loading=None)

    def all(self) -> tuple[m.EngineStatus, ...]:
        """Return every engine, in their order."""
        return tuple(self._heard.get(engine, _unheard(engine)) for engine in self._engines)

    def preload_problem(self) -> str:
        """Return why the model that is loaded ahead could not be; empty where no engine says so."""
        return next((engine.preload_problem for engine in self.all() if engine.preload_problem), "")

    def usable(self) -> Sequence[m.EngineStatus]:
        """Return the engines that can be given a job, the best first."""
        sound = [engine for engine in self._heard.values() if engine.condition not in _GONE]
        return sorted(sound, key=lambda engine: engine.condition is not m.EngineCondition.READY)

    def unavailable(self) -> EngineUnavailable | None:
        """Return the error for work that waits for an engine, where there is none that it may hope for."""
        engines = self.all()
        if any(engine.condition not in _GONE for engine in engines):
            return None
        return EngineUnavailable.because(next((engine.reason for engine in engines if engine.reason), ""))


def _unheard(engine: EngineId) -> m.EngineStatus:
    return m.EngineStatus(id=engine, condition=m.EngineCondition.STARTING)

"""Arithmetic of one engine's memory, without I/O: what a model needs, what is resident, the next to go, the budget."""

from collections.abc import Collection, Iterator

import attrs

from mflux_api.actors import messages as m
from mflux_api.catalog import Model
from mflux_api.engine.protocol import Ready
from mflux_api.jobs.memory_advice import MemoryAdvice
from mflux_api.storage.footprint import Footprint

GIGABYTE = 1e9

DEVICE_SHARE = 0.85
"""How much of the device's memory the models may take by default; the rest is for images in the making."""

UNPACKED_SHARE = 0.5
"""How much of what the models may take one with unpacked weights may have, so that a second one has room, too."""


@attrs.frozen
class Room:
    """The memory that a model is to have."""

    size: int
    """In bytes."""
    alternating_offload: bool = False
    """Its large components take turns in it."""
    unpack: bool = False
    """Its quantized weights are kept unpacked in it."""


@attrs.define
class ResidentModel:
    """One model in memory."""

    alias: str
    incarnation: int
    """The engine child that has it."""
    size: int
    """Bytes of its weights."""
    component_offload: bool
    """Only the component in use is in memory."""
    used_at: float
    """When it was last leased or given back."""
    alternating_offload: bool = False
    """There is no room for the whole model: its text encoder and its transformer take turns."""


class Residents:
    """The models of one engine child."""

    def __init__(self) -> None:
        self._models: dict[str, ResidentModel] = {}

    def __iter__(self) -> Iterator[ResidentModel]:
        """The most recently used first."""
        return iter(sorted(self._models.values(), key=lambda model: model.used_at, reverse=True))

    def __len__(self) -> int:
        return len(self._models)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(model.size for model in self._models.values())

    def get(self, alias: str) -> ResidentModel | None:
        """Return a model's entry."""
        return self._models.get(alias)

    def put(self, model: ResidentModel) -> None:
        """A model is in memory."""
        self._models[model.alias] = model

    def drop(self, alias: str) -> None:
        """A model is not in memory any more."""
        self._models.pop(alias, None)

    def keep_only(self, incarnation: int | None) -> None:
        """Forget what other engine children had."""
        self._models = {alias: model for alias, model in self._models.items() if model.incarnation == incarnation}

    def least_recently_used(self, spared: Collection[str]) -> ResidentModel | None:
        """Return the model to evict first, or ``None`` where all are spared."""
        candidates = [model for model in self._models.values() if model.alias not in spared]
        return min(candidates, key=lambda model: model.used_at, default=None)


def needed_bytes(
    model: Model, footprint: Footprint | None, limit: int | None, *, float_bytes: int, low_ram: bool, unpacks: bool
) -> Room:
    """Return what to make room for; it depends on the model and the limit, and never on what is in memory.

    Args:
        model: the model that is to be loaded.
        footprint: what its files say; ``None`` where they are not on disk or broken, of which the engine will tell.
        limit: the bytes that models may take together; ``None`` where nothing is known.
        float_bytes: bytes of a number in the engine's precision.
        low_ram: whether one component at a time is enough.
        unpacks: whether the engine unpacks quantized weights before each product, unless they are kept unpacked.
    """
    if footprint is None:
        return Room(int((model.size_gb or 0.0) * GIGABYTE * float_bytes / 2))
    if low_ram or limit is None:
        return Room(footprint.bytes_for(low_ram=low_ram))
    if footprint.alternating_offload is not None and footprint.whole > limit:
        return Room(footprint.alternating_offload, alternating_offload=True)
    if unpacks and footprint.unpacked is not None and footprint.unpacked <= limit * UNPACKED_SHARE:
        return Room(footprint.unpacked, unpack=True)
    return Room(footprint.whole)


def budget(configured_gb: float | None, engine: Ready | None, free: int | None, resident: int) -> int | None:
    """Return the bytes that models may take together; ``None`` where nothing is known.

    Args:
        configured_gb: ``memory.budget_gb``.
        engine: the child that is up.
        free: what its device had left at its last heartbeat.
        resident: bytes of the models in it.
    """
    if configured_gb is not None:
        return int(configured_gb * GIGABYTE)
    if engine is None or not engine.memory_bytes:
        return None
    share = int(engine.memory_bytes * DEVICE_SHARE)
    if engine.device == "cpu" and free is not None:
        # Other programs use this memory too, and what is not there when it is needed ends the engine.
        return min(share, free + resident)
    return share


def float_bytes(engine: m.EngineState) -> int:
    """Return how many bytes a number takes in the engine's precision."""
    return 4 if engine.info is not None and engine.info.precision == "float32" else 2


@attrs.frozen
class Demand:
    """A model that is to be loaded."""

    model: Model
    footprint: Footprint | None
    """What its files say; ``None`` where they are not on disk or broken."""
    low_ram: bool = attrs.field(kw_only=True)
    """One component in memory at a time is enough."""


class MemoryBudget:
    """Whether a model has room on an engine; each question also names the bytes that are resident."""

    def __init__(self, configured_gb: float | None, advice: MemoryAdvice) -> None:
        self._configured_gb = configured_gb
        self._advice = advice

    def limit(self, engine: m.EngineState, resident: int) -> int | None:
        """Return the bytes that models may take together; ``None`` where nothing is known."""
        return budget(self._configured_gb, engine.info, engine.free_bytes, resident)

    def is_short(self, demand: Demand, engine: m.EngineState, resident: int) -> bool:
        """Whether a model would get less room than it wants only because of what is free at the moment."""
        idle = attrs.evolve(engine, free_bytes=None)
        at_best = self._room(demand, idle, resident)
        now, at_most = self.limit(engine, resident), self.limit(idle, resident)
        if now is None or (at_most is not None and at_best.size > at_most):
            return False
        return at_best.size > now or self._room(demand, engine, resident) != at_best

    def require(self, demand: Demand, engine: m.EngineState, resident: int) -> Room:
        """Return what to make room for.

        Raises:
            OutOfMemory: the model cannot have that much, whatever else is evicted.
        """
        room, limit = self._room(demand, engine, resident), self.limit(engine, resident)
        if limit is None or room.size <= limit:
            return room
        needed, available = round(room.size / GIGABYTE, 2), round(limit / GIGABYTE, 2)
        raise self._advice.error(
            demand.model.alias,
            low_ram=demand.low_ram,
            reason=f"'{demand.model.alias}' needs {needed} GB and models may take {available} GB here",
            needed_gb=needed,
            available_gb=available,
        )

    def _room(self, demand: Demand, engine: m.EngineState, resident: int) -> Room:
        return needed_bytes(
            demand.model,
            demand.footprint,
            self.limit(engine, resident),
            float_bytes=float_bytes(engine),
            low_ram=demand.low_ram,
            unpacks=engine.info is not None and engine.info.device == "cuda",
        )

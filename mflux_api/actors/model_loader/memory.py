"""The memory of one engine child: its models and their leases, room for another, loading and unloading."""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.engine_disk import EngineDisk
from mflux_api.actors.mailbox import ActorGone, Address
from mflux_api.actors.model_loader.leases import Leases
from mflux_api.actors.model_loader.loading import load_command, load_while_wanted
from mflux_api.actors.model_loader.residency import GIGABYTE, MemoryBudget, ResidentModel, Residents, Room
from mflux_api.catalog import Model
from mflux_api.config import MemorySettings
from mflux_api.engine.interface import EngineDied, EngineId
from mflux_api.engine.protocol import UnloadModel
from mflux_api.errors import OutOfMemory, ServiceError
from mflux_api.jobs.memory_advice import MemoryAdvice

logger = logging.getLogger(__name__)


class EngineMemory:
    """What is in the memory of one engine. One task changes it; a lease keeps its model there."""

    def __init__(
        self,
        engine: EngineId,
        generator: Address[m.GeneratorMessage],
        disk: EngineDisk,
        settings: MemorySettings,
        advice: MemoryAdvice,
        *,
        tell: Callable[[], None],
        change: Callable[[], Awaitable[None]],
        asking: Callable[[m.Acquire], Sequence[m.Acquire]],
        child: Callable[[], m.EngineState | None],
        stats: Address[m.StatsMessage],
    ) -> None:
        """Take what the memory is changed by.

        Args:
            engine: whose memory it is.
            generator: loads and unloads.
            disk: where the models lie.
            settings: the budget, and when idle models go.
            advice: what callers are told of models that do not fit.
            tell: called when it has changed.
            change: waits until leases or questions may have changed.
            asking: tells the questions that the load for one of them is for.
            child: tells the child as it was last heard of.
            stats: counts loads, and what leaves.
        """
        self._engine = engine
        self._generator = generator
        self._disk = disk
        self._settings = settings
        self._advice = advice
        self._tell = tell
        self._change = change
        self._asking = asking
        self._child = child
        self._stats = stats
        self.budget = MemoryBudget(settings.budget_gb, advice)
        self.residents = Residents()
        self.leases = Leases()
        self.loading: str | None = None
        """The model that is being loaded."""

    def keep_only(self, incarnation: int | None) -> None:
        """Forget what other engine children had, and the leases on it."""
        self.residents.keep_only(incarnation)
        self.leases.keep_only(incarnation)

    def is_held(self, alias: str) -> bool:
        """Whether a model must stay: it is leased, or being loaded."""
        return self.loading == alias or alias in self.leases.models

    # --- room ---

    async def make_room(self, request: m.Acquire, size: int, engine: m.EngineState) -> bool:
        """Evict until the model fits, waiting for leases where that is needed; return whether it is still wanted."""
        limit = self.budget.limit(engine, self.residents.size)
        while limit is not None and self.residents.size - self._size_now(request.model) + size > limit:
            leased = self.leases.models
            victim = self.residents.least_recently_used(leased | {request.model})
            if victim is not None:
                await self.unload(victim, m.EvictionReason.ROOM)
                continue
            if not leased:
                break
            await self._change()
            if not request.reply.wanted:
                return False
        return True

    def _size_now(self, alias: str) -> int:
        resident = self.residents.get(alias)
        return 0 if resident is None else resident.size

    def idle_deadline(self) -> float:
        """Return when the next model has been idle for long enough to go."""
        seconds = self._settings.idle_unload_seconds
        leased = self.leases.models
        idle = [resident.used_at for resident in self.residents if resident.alias not in leased]
        return min(idle) + seconds if idle and seconds > 0 else math.inf

    async def unload_idle(self) -> None:
        """Unload the models that have been idle for long enough."""
        while self.idle_deadline() <= trio.current_time():
            leased = self.leases.models
            victim = self.residents.least_recently_used(leased)
            if victim is None:
                return
            try:
                await self.unload(victim, m.EvictionReason.IDLE)
            except (ServiceError, EngineDied, ActorGone) as error:
                logger.debug("an idle model left with its engine (%s)", type(error).__name__)

    # --- loading ---

    async def unload(self, resident: ResidentModel, reason: m.EvictionReason) -> None:
        """Have a model out of memory.

        Raises:
            EngineDied: the engine ended over it.
        """
        # Forgotten first: when the question fails, the child is gone and the model with it.
        self.residents.drop(resident.alias)
        self._tell()
        await self._generator.ask(m.UnloadModel(command=UnloadModel(model=resident.alias)))
        logger.info("model %s unloaded, %.2f GB", resident.alias, resident.size / GIGABYTE)
        self._stats.tell_lossy(m.ModelEvicted(engine=self._engine, model=resident.alias, reason=reason))

    async def load(self, request: m.Acquire, model: Model, folder: Path, room: Room) -> float:
        """Load a model that there is room for, and return how many seconds it took.

        Raises:
            LoadCancelled: it was not wanted any more.
            OutOfMemory: the device has no room for it after all.
            EngineDied: the engine ended over it.
            ServiceError: it cannot be loaded.
        """
        while True:
            try:
                return await self._load_once(request, model, folder, room)
            except OutOfMemory as error:
                if room.unpack:
                    room = attrs.evolve(room, unpack=False)
                    continue
                # It should have fitted, but the device says no: perhaps without the others.
                leased = self.leases.models
                victim = self.residents.least_recently_used(leased)
                if victim is None:
                    raise self._advice.error(model.alias, low_ram=request.low_ram) from error
                await self.unload(victim, m.EvictionReason.ROOM)

    async def _load_once(self, request: m.Acquire, model: Model, folder: Path, room: Room) -> float:
        self.residents.drop(model.alias)
        self.loading = model.alias
        self._tell()
        try:
            offload, entry = request.low_ram or room.alternating_offload, self._disk.quantized(model)
            command = load_command(model, folder, entry, component_offload=offload, unpack=room.unpack)
            loaded = await load_while_wanted(self._generator, command, lambda: self._asking(request), self._change)
        finally:
            self.loading = None
            self._tell()
        child = self._child()
        if child is not None and (child.incarnation, child.info is None) > (loaded.incarnation, False):
            # It died over its own answer, and the word of that came first.
            raise EngineDied(child.reason or "the child that had the model is gone")
        size = loaded.weights_bytes or room.size
        self.residents.put(
            ResidentModel(
                alias=model.alias,
                incarnation=loaded.incarnation,
                size=size,
                component_offload=request.low_ram,
                used_at=trio.current_time(),
                alternating_offload=room.alternating_offload,
            )
        )
        self._tell()
        if loaded.warning:
            logger.warning("model %s: %s", model.alias, loaded.warning)
        logger.info("model %s loaded in %.1f s, %.2f GB", model.alias, loaded.seconds, size / GIGABYTE)
        self._stats.tell_lossy(m.ModelLoaded(engine=self._engine, model=model.alias, seconds=loaded.seconds))
        return loaded.seconds

"""The model loader: loads, evicts and leases the models of one engine, within its budget, and tells the scheduler.

A lease keeps its model. A job that needs a model which is not resident waits until there is room for it, first come,
first served; room is made by evicting what no lease holds, the least recently used first. One task changes the
residency. The loader alone tells the scheduler how the engine is doing.
"""

import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn, assert_never

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.engine_disk import EngineDisk
from mflux_api.actors.mailbox import ActorGone, Address, Mailbox
from mflux_api.actors.model_loader.memory import EngineMemory
from mflux_api.actors.model_loader.preload import Preload
from mflux_api.actors.model_loader.residency import Demand, float_bytes
from mflux_api.catalog import Catalog
from mflux_api.config import MemorySettings
from mflux_api.engine.interface import EngineDied, EngineId
from mflux_api.errors import (
    EngineUnavailable,
    InternalError,
    ModelInUse,
    ModelNotDownloaded,
    ModelNotFound,
    ServiceError,
)
from mflux_api.jobs.memory_advice import MemoryAdvice
from mflux_api.supervisor import Started

logger = logging.getLogger(__name__)


class ModelLoader:
    """Grants leases in order; loads and unloads through the generator."""

    def __init__(
        self,
        engine: EngineId,
        mailbox: Mailbox[m.LoaderMessage],
        generator: Address[m.GeneratorMessage],
        scheduler: Address[m.SchedulerMessage],
        stats: Address[m.StatsMessage],
        catalog: Catalog,
        memory: MemorySettings,
        disk: EngineDisk,
        *,
        start_timeout: float = 60.0,
        preload: str | None = None,
    ) -> None:
        self._engine = engine
        self._mailbox = mailbox
        self._generator = generator
        self._scheduler = scheduler
        self._stats = stats
        self._catalog = catalog
        self._settings = memory
        self._disk = disk
        self._advice = MemoryAdvice(catalog)
        self._start_timeout = start_timeout
        # Kept across restarts of this actor: what was loaded once made the service ready.
        self._preload = None if preload is None else Preload(preload, catalog.get(preload), generator, tell=self._tell)
        self._ids = itertools.count(1)
        # What the scheduler was told of the child's device stays true while the next one starts.
        self._device: str | None = None
        self._reset()

    def _reset(self) -> None:
        self._waiting: deque[m.Acquire | m.Evict] = deque()
        self._changed = trio.Event()
        self._memory = EngineMemory(
            self._engine,
            self._generator,
            self._disk,
            self._settings,
            self._advice,
            tell=self._tell,
            change=self._change,
            asking=self._asking,
            child=lambda: self._child,
            stats=self._stats,
        )
        self._child: m.EngineState | None = None
        self._down_since: float | None = None

    async def run(self, status: Started) -> None:
        """Serve the mailbox until cancelled."""
        self._reset()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._grant_in_order)
            if self._preload is not None:
                nursery.start_soon(self._preload.run, self._leased, self._engine_up)
            status.started()
            self._tell()
            while True:
                message = await self._mailbox.receive()
                match message:
                    case m.GeneratorChanged():
                        self._note_child(message.state)
                    case m.ReportEngine():
                        self._tell()
                    case m.Acquire():
                        self._waiting.append(message)
                        if self._preload is not None:
                            self._preload.make_way(message.model)
                    case m.Release():
                        self._release(message.request)
                    case m.Evict():
                        self._consider(message)
                    case m.GetResidency():
                        message.reply.ok(self._residency())
                    case _:
                        assert_never(message)
                self._wake()

    def _note_child(self, child: m.EngineState) -> None:
        self._child = child
        if child.info is not None:
            self._device = child.info.device
        self._keep_only(child)
        self._tell()

    @asynccontextmanager
    async def _leased(self, alias: str) -> AsyncIterator[m.Lease]:
        """Ask for a model as a job does, in line with all others, and hold it for the length of the block."""
        request = m.Acquire(model=alias)
        self._waiting.append(request)
        self._wake()
        try:
            yield await request.reply.receive(self._mailbox.name)
        finally:
            self._release(request)
            self._wake()

    async def _engine_up(self) -> None:
        while self._child is None or self._child.info is None:
            await self._change()

    def _release(self, request: m.Acquire) -> None:
        lease = self._memory.leases.give_back(request)
        if lease is not None:
            self._used(lease.model)

    def _used(self, alias: str) -> None:
        resident = self._memory.residents.get(alias)
        if resident is not None:
            resident.used_at = trio.current_time()

    def _residency(self) -> m.Residency:
        models = tuple(resident.alias for resident in self._memory.residents)
        model = models[0] if models else None
        return m.Residency(model=model, leases=len(self._memory.leases), loading=self._memory.loading, models=models)

    # --- one after another ---

    async def _grant_in_order(self) -> NoReturn:
        while True:
            while not self._waiting:
                with trio.move_on_at(self._memory.idle_deadline()):
                    await self._change()
                await self._memory.unload_idle()
            request = self._waiting.popleft()
            if not request.reply.wanted:
                request.reply.abandon()
                continue
            try:
                if isinstance(request, m.Evict):
                    await self._evict(request)
                else:
                    await self._grant(request)
            except (ServiceError, EngineDied, ActorGone) as error:
                request.reply.fail(error)
            except m.LoadCancelled:
                logger.info("model %s: its load was stopped; no job or caller waits for it any more", request.model)
                request.reply.abandon()
            except Exception as error:
                # A defect. After a restart it would meet this model again, and in the end cost the whole engine.
                logger.error("engine %s, model %s: a defect: %s", self._engine, request.model, type(error).__name__)
                logger.debug("engine %s, model %s: a defect", self._engine, request.model, exc_info=error)
                request.reply.fail(InternalError("The service failed on this model; the log has the details"))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _change(self) -> None:
        await self._changed.wait()

    async def _grant(self, request: m.Acquire) -> None:
        engine = await self._engine_that_is_up(request)
        resident = self._memory.residents.get(request.model)
        seconds = 0.0
        if resident is None or (resident.component_offload and not request.low_ram):
            model = self._catalog.get(request.model)
            if model is None:
                raise ModelNotFound(f"Model '{request.model}' not found", {"model": request.model})
            folder = await self._disk.locate(model)
            if folder is None:
                raise ModelNotDownloaded(f"Model '{model.alias}' is not on disk", {"model": model.alias})
            demand = Demand(model, await self._disk.measure(model, float_bytes(engine)), low_ram=request.low_ram)
            if self._memory.budget.is_short(demand, engine, self._memory.residents.size):
                measured = await self._measured_at_rest(request)
                if measured is None:
                    request.reply.abandon()
                    return
                engine = measured
            room = self._memory.budget.require(demand, engine, self._memory.residents.size)
            if not await self._memory.make_room(request, room.size, engine):
                request.reply.abandon()
                return
            seconds = await self._memory.load(request, model, folder, room)
        elif request.low_ram:
            # The run gives up each component after its use.
            resident.component_offload = True
        resident = self._memory.residents.get(request.model)
        if resident is None:
            raise EngineDied("the model is gone again")
        lease = m.Lease(
            id=next(self._ids),
            engine=self._engine,
            incarnation=resident.incarnation,
            model=request.model,
            device=self._device,
            load_seconds=seconds,
            alternating_offload=resident.alternating_offload,
        )
        self._used(request.model)
        if self._preload is not None:
            self._preload.note_lease(request.model)
        self._memory.leases.grant(request, lease)

    def _consider(self, request: m.Evict) -> None:
        """Answer at once where there is nothing to do, or nothing that may be done; else it waits in line."""
        if self._memory.is_held(request.model):
            request.reply.fail(_in_use(request.model))
        elif self._memory.residents.get(request.model) is None:
            request.reply.ok(None)
        else:
            self._waiting.append(request)

    async def _evict(self, request: m.Evict) -> None:
        await self._current_child()
        if self._memory.is_held(request.model):
            raise _in_use(request.model)
        resident = self._memory.residents.get(request.model)
        if resident is not None:
            await self._memory.unload(resident, m.EvictionReason.ASKED)
        request.reply.ok(None)

    async def _engine_that_is_up(self, request: m.Acquire) -> m.EngineState:
        """Return the engine's state once a child is up: how much memory there is only that can tell.

        Raises:
            EngineUnavailable: it is degraded, or does not come up in time.
        """
        child = await self._current_child()
        if child.info is not None:
            return child
        # From when it went down or was asked for: those who wait together are answered together.
        deadline = max(request.asked_at, self._down_since or 0.0) + self._start_timeout
        with trio.move_on_at(deadline):
            return await self._generator.ask(m.AwaitEngine())
        raise EngineUnavailable.because(child.reason or f"it is not up after {self._start_timeout:g} s")

    async def _current_child(self) -> m.EngineState:
        """Return the engine as it is; what a dead child had in memory is gone, and so are the leases on it."""
        child = await self._generator.ask(m.GetEngine())
        self._keep_only(child)
        return child

    def _keep_only(self, child: m.EngineState) -> None:
        alive = child.incarnation if child.info is not None else None
        if alive is not None:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = trio.current_time()
        self._memory.keep_only(alive)

    async def _measured_at_rest(self, request: m.Acquire) -> m.EngineState | None:
        """Return the engine with what is free when nothing runs on it; ``None`` when that is not wanted any more.

        A reading may be a second old, or from inside a run, and what it says would be final.
        """
        while True:
            while self._memory.leases:
                await self._change()
                if not request.reply.wanted:
                    return None
            try:
                measured = await self._generator.ask(m.MeasureMemory())
            except EngineDied:
                # The asker was not inside, and must not be counted a death.
                await self._engine_that_is_up(request)
                continue
            self._keep_only(measured)
            return measured

    def _asking(self, request: m.Acquire) -> list[m.Acquire]:
        """The questions that a load is for: also those in line, which will find the model there."""
        same = [each for each in self._waiting if isinstance(each, m.Acquire) and each.model == request.model]
        return [each for each in (request, *same) if each.reply.wanted]

    def _tell(self) -> None:
        """Tell the scheduler how the engine is doing, whatever changed."""
        child, preload = self._child, self._preload
        if child is None or (child.info is None and not child.degraded):
            condition = m.EngineCondition.STARTING
        else:
            condition = m.EngineCondition.READY if child.info is not None else m.EngineCondition.DEGRADED
        status = m.EngineStatus(
            id=self._engine,
            condition=condition,
            incarnation=child.incarnation if child is not None else 0,
            device=self._device,
            models=tuple(resident.alias for resident in self._memory.residents),
            loading=self._memory.loading,
            reason=child.reason if child is not None else "",
            preloaded=preload is not None and preload.done,
            preload_problem="" if preload is None else preload.problem,
            warming_up=preload is not None and preload.warming_up,
        )
        self._scheduler.tell_latest(m.EngineChanged(status=status), key=self._engine)


def _in_use(alias: str) -> ModelInUse:
    return ModelInUse(
        f"Model '{alias}' is in use; try again when its jobs have ended, or cancel them", {"model": alias}
    )

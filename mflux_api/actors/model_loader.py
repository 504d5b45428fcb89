"""The model loader: which model is in the engine's memory, and who holds it there.

One model is resident. A lease keeps it; another model waits until the leases are back, first come, first served.
"""

import itertools
import logging
from collections import deque
from typing import NoReturn, assert_never

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone, Address, Mailbox
from mflux_api.catalog import Catalog
from mflux_api.engine.interface import EngineDied
from mflux_api.errors import ModelInUse, ModelNotDownloaded, ModelNotFound, ServiceError
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.supervisor import Started

logger = logging.getLogger(__name__)


class ModelLoader:
    """Grants leases in order; loads through the generator."""

    def __init__(
        self,
        mailbox: Mailbox[m.LoaderMessage],
        generator: Address[m.GeneratorMessage],
        catalog: Catalog,
        checkpoints: Checkpoints,
        *,
        preload: str | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._generator = generator
        self._catalog = catalog
        self._checkpoints = checkpoints
        self._preload = preload
        self._ids = itertools.count(1)
        self._reset()

    def _reset(self) -> None:
        self._waiting: deque[m.Acquire | m.Evict] = deque()
        self._changed = trio.Event()
        self._leases: dict[int, m.Lease] = {}
        self._resident: tuple[str, int] | None = None
        self._loading: str | None = None

    async def run(self, status: Started) -> None:
        """Serve the mailbox until cancelled."""
        self._reset()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._grant_in_order)
            if self._preload is not None:
                nursery.start_soon(self._load_ahead, self._preload)
            status.started()
            while True:
                message = await self._mailbox.receive()
                match message:
                    case m.Acquire():
                        self._waiting.append(message)
                    case m.Release():
                        self._leases.pop(message.lease_id, None)
                    case m.Evict():
                        self._consider(message)
                    case m.GetResidency():
                        message.reply.ok(self._residency())
                    case _:
                        assert_never(message)
                self._changed.set()

    async def _load_ahead(self, alias: str) -> None:
        """Make a model resident before anybody asks for it, in line with everybody else."""
        request = m.Acquire(model=alias)
        self._waiting.append(request)
        self._changed.set()
        try:
            lease = await request.reply.receive(self._mailbox.name)
        except (ServiceError, EngineDied, ActorGone) as error:
            logger.warning("model %s cannot be loaded ahead (%s)", alias, type(error).__name__)
            return
        self._leases.pop(lease.id, None)
        self._changed.set()

    def _residency(self) -> m.Residency:
        model = self._resident[0] if self._resident is not None else None
        return m.Residency(model=model, leases=len(self._leases), loading=self._loading)

    async def _grant_in_order(self) -> NoReturn:
        while True:
            while not self._waiting:
                await self._change()
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

    async def _change(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()

    async def _grant(self, request: m.Acquire) -> None:
        await self._forget_the_dead()
        seconds = 0.0
        if self._resident is None or self._resident[0] != request.model:
            while self._leases:
                await self._change()
                if not request.reply.wanted:
                    request.reply.abandon()
                    return
            seconds = await self._load(request.model)
        if self._resident is None:
            raise EngineDied("the model is gone again")
        lease = m.Lease(id=next(self._ids), model=request.model, incarnation=self._resident[1], load_seconds=seconds)
        self._leases[lease.id] = lease
        if not request.reply.ok(lease):
            # The asker died while it waited.
            del self._leases[lease.id]

    def _consider(self, request: m.Evict) -> None:
        """Answer at once where there is nothing to do, or nothing that may be done; else it waits in line."""
        if self._is_held(request.model):
            request.reply.fail(_in_use(request.model))
        elif self._resident is None or self._resident[0] != request.model:
            request.reply.ok(None)
        else:
            self._waiting.append(request)

    async def _evict(self, request: m.Evict) -> None:
        await self._forget_the_dead()
        if self._is_held(request.model):
            raise _in_use(request.model)
        if self._resident is not None and self._resident[0] == request.model:
            # Forgotten first: when the question fails, the child is gone and the model with it.
            self._resident = None
            await self._generator.ask(m.UnloadModel(model=request.model))
            logger.info("model %s unloaded", request.model)
        request.reply.ok(None)

    def _is_held(self, alias: str) -> bool:
        return self._loading == alias or any(lease.model == alias for lease in self._leases.values())

    async def _forget_the_dead(self) -> None:
        """What a dead child had in memory is gone, and so are the leases on it."""
        engine = await self._generator.ask(m.GetEngine())
        alive = engine.incarnation if engine.info is not None else None
        if self._resident is not None and self._resident[1] != alive:
            self._resident = None
        self._leases = {key: lease for key, lease in self._leases.items() if lease.incarnation == alive}

    async def _load(self, alias: str) -> float:
        model = self._catalog.get(alias)
        folder = None if model is None else self._checkpoints.folder(model)
        if model is None:
            raise ModelNotFound(f"Model '{alias}' not found", {"model": alias})
        if folder is None:
            raise ModelNotDownloaded(f"Model '{alias}' is not on disk any more", {"model": alias})
        self._resident = None
        self._loading = alias
        try:
            loaded = await self._generator.ask(m.LoadModel(model=alias, path=str(folder), embedded=model.embedded))
        finally:
            self._loading = None
        self._resident = (alias, loaded.incarnation)
        logger.info("model %s loaded in %.1f s", alias, loaded.seconds)
        return loaded.seconds


def _in_use(alias: str) -> ModelInUse:
    return ModelInUse(
        f"Model '{alias}' is in use; try again when its jobs have ended, or cancel them", {"model": alias}
    )

"""Questions about engines and their models: in memory, on disk, and on their way there."""

import logging
from contextlib import suppress

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.engine_addresses import EngineAddresses
from mflux_api.actors.leasing import leased
from mflux_api.actors.mailbox import ActorGone, ActorSuspended
from mflux_api.catalog import Model
from mflux_api.engine.interface import EngineDied
from mflux_api.engine.protocol import Ready
from mflux_api.errors import EngineUnavailable, ModelNotDownloaded
from mflux_api.gateway.questions import Questions, gone_error

logger = logging.getLogger(__name__)

ENGINE_ANSWER_SECONDS = 2.0
"""How long the actors of one engine may take to say how it is doing."""


@attrs.frozen(kw_only=True)
class EngineView:
    """One engine as operators see it."""

    status: m.EngineStatus
    state: m.EngineState | None
    """``None`` while its actors do not answer."""
    residency: m.Residency | None

    @property
    def info(self) -> Ready | None:
        """What its child said of itself; ``None`` while none is up."""
        return None if self.state is None else self.state.info

    @property
    def models(self) -> tuple[str, ...]:
        """The models in its memory, the most recently used first."""
        return self.status.models if self.residency is None else self.residency.models

    @property
    def loading(self) -> str | None:
        """The model that is being loaded."""
        return self.status.loading if self.residency is None else self.residency.loading


class Models(Questions):
    """Looking at engines; loading, unloading, downloading and deleting models."""

    async def engines(self) -> tuple[EngineView, ...]:
        """Return every engine, in their order, with what its actors say of it."""
        statuses = await self._ask(self._to.scheduler, m.GetEngines())
        return tuple([await self._engine_view(status) for status in statuses])

    async def _engine_view(self, status: m.EngineStatus) -> EngineView:
        to = self._to.engines[status.id]
        state: m.EngineState | None = None
        residency: m.Residency | None = None
        # Bounded: actors that are being restarted answer when they are back.
        with suppress(ActorGone), trio.move_on_after(ENGINE_ANSWER_SECONDS):
            state = await to.generator.ask(m.GetEngine())
            residency = await to.loader.ask(m.GetResidency())
        return EngineView(status=status, state=state, residency=residency)

    async def download_state(self, model: Model) -> m.DownloadState:
        """Return how far a model's download is, or why the last one failed."""
        return await self._ask(self._to.downloader, m.GetDownload(model=model.alias))

    async def download(self, model: Model) -> None:
        """Begin to download a model, whether a job needs it or not; nothing to do when it is on disk."""
        await self._ask(self._to.downloader, m.StartDownload(model=model.alias))

    async def load_model(self, model: Model) -> None:
        """Bring a model into the memory of an engine, in line with the jobs that need one; returns when it is there.

        Raises:
            ModelNotDownloaded: it is not on disk.
            OutOfMemory: it does not fit.
            EngineUnavailable: the engine died while it loaded, or is not up within ``engine.start_timeout_seconds``.
            GenerationFailed: the checkpoint cannot be used.
        """
        if not await self._on_disk(model):
            raise ModelNotDownloaded(
                f"Model '{model.alias}' is not on disk; POST /api/v1/models/{model.alias}/download first",
                {"model": model.alias, "endpoint": f"POST /api/v1/models/{model.alias}/download"},
            )
        loader = (await self._engine_for(model)).loader
        try:
            async with leased(loader, m.Acquire(model=model.alias)):
                logger.debug("model %s is in memory", model.alias)
        except ActorGone as gone:
            raise gone_error(gone) from None
        except EngineDied as died:
            raise EngineUnavailable(
                f"The engine ended while it loaded '{model.alias}' ({died.reason}); try again or see the log"
            ) from None

    async def _engine_for(self, model: Model) -> EngineAddresses:
        """The engine that has the model, else one that could load it: the first that is up, if there is one."""
        statuses = await self._ask(self._to.scheduler, m.GetEngines())
        working = [status for status in statuses if status.condition is not m.EngineCondition.FAILED]
        if not working:
            raise EngineUnavailable.because(next((status.reason for status in statuses if status.reason), ""))

        def fitness(status: m.EngineStatus) -> tuple[bool, bool, bool]:
            up = status.condition is m.EngineCondition.READY
            return model.alias in status.models, up, status.condition is not m.EngineCondition.DEGRADED

        return self._to.engines[max(working, key=fitness).id]

    async def unload_model(self, model: Model) -> None:
        """Have a model out of the memory of every engine; nothing to do where it is not.

        Raises:
            ModelInUse: a job runs on it.
        """
        for engine in self._to.engines.values():
            try:
                await engine.loader.ask(m.Evict(model=model.alias))
            except (EngineDied, ActorSuspended):
                logger.debug("the engine is gone, and what it had in memory with it")
            except ActorGone as gone:
                raise gone_error(gone) from None

    async def delete_model(self, model: Model) -> None:
        """Remove a model from memory and from disk.

        Raises:
            ModelNotDeletable: this service did not put it there.
            ModelNotDownloaded: there is nothing to remove.
            ModelInUse: a job runs on it or waits for its download.
        """
        await self._ask(self._to.downloader, m.DeleteModel(model=model.alias))

    async def model_hash(self, alias: str) -> str | None:
        """Return the short digest of a model's checkpoint; ``None`` when it is not on disk."""
        model = self.catalog.get(alias)
        return await self.read_models(self.checkpoints.short_hash, model)

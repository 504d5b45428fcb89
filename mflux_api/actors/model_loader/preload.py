"""The model that is loaded before a job asks for it, and warmed up on a GPU: a throw-away pass compiles its kernels."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone, Address
from mflux_api.catalog import Model
from mflux_api.engine.interface import EngineDied, Received
from mflux_api.errors import EngineUnavailable, ServiceError
from mflux_api.jobs.request import GenerateRequest
from mflux_api.jobs.resolve import ResolvedRequest, resolve

logger = logging.getLogger(__name__)

STEPS = 2
"""Of the warm-up: every kernel of a longer run is in them."""
RUN_ID = 0
"""The warm-up's; those of jobs are counted from 1."""


def warm_up_request(model: Model) -> ResolvedRequest:
    """Return what a request without fields would run, in few steps: its kind of pass is warm then."""
    return resolve(GenerateRequest(prompt="a warm-up", seed=0, steps=STEPS), model, default_steps=STEPS)


class Preload:
    """Loads a model ahead and warms it up; knows whether that is done, or why it could not be."""

    def __init__(
        self,
        alias: str,
        model: Model | None,
        generator: Address[m.GeneratorMessage],
        *,
        tell: Callable[[], None],
    ) -> None:
        """Take what is loaded, and by what.

        Args:
            alias: the model's.
            model: its entry; ``None`` where the catalog has none, which the load will tell.
            generator: the engine's.
            tell: called when something has changed that others see.
        """
        self.alias = alias
        self._model = model
        self._generator = generator
        self._tell = tell
        self._under_way = False
        self._warming: trio.CancelScope | None = None
        self._others_wait = False
        """Whether another model was wanted since the load began."""
        self.done = False
        """Whether the model was in memory, and warm or as warm as it will get; whatever became of it since."""
        self.problem = ""
        """Why it could not be loaded; empty otherwise."""

    @property
    def warming_up(self) -> bool:
        """Whether the throw-away pass is under way."""
        return self._warming is not None

    async def run(
        self,
        leased: Callable[[str], AbstractAsyncContextManager[m.Lease]],
        engine_up: Callable[[], Awaitable[None]],
    ) -> None:
        """Load the model and warm it up, in line with all others.

        Args:
            leased: asks for a model and holds it.
            engine_up: waits until the engine has a child.
        """
        self._under_way, self._others_wait, cold = True, False, True
        try:
            while True:
                try:
                    async with leased(self.alias) as lease:
                        if not cold or await self._warm_up(lease):
                            self.done, self.problem = True, ""
                            return
                        # The engine died over it and has nothing in memory now; that must not happen again and again.
                        cold = False
                except EngineUnavailable:
                    await engine_up()
        except (ServiceError, EngineDied, ActorGone) as error:
            logger.warning("model %s cannot be loaded ahead (%s)", self.alias, type(error).__name__)
            self.problem = error.message if isinstance(error, ServiceError) else "the engine ended over it"
        finally:
            self._under_way = False
            self._tell()

    def note_lease(self, alias: str) -> None:
        """A model was leased: if it is this one, a job has brought it where it was to be."""
        if alias == self.alias and not self._under_way and not self.done:
            self.done, self.problem = True, ""
            self._tell()

    def make_way(self, alias: str) -> None:
        """A model is wanted: unless it is this one, the warm-up ends at its next step, or does not begin."""
        if alias == self.alias:
            return
        self._others_wait = True
        if self._warming is not None:
            self._warming.cancel()

    async def _warm_up(self, lease: m.Lease) -> bool:
        """Run one pass whose images are dropped; return whether the model can still be in memory after it."""
        # A CPU compiles nothing, and an upscaler has no request without an image.
        if lease.device in (None, "cpu") or self._model is None or self._model.upscales or self._others_wait:
            return True
        began = trio.current_time()
        self._warming = trio.CancelScope()
        self._tell()
        try:
            await self._run(lease, self._model, self._warming)
        except (EngineDied, m.StaleLease) as error:
            logger.warning("model %s: the engine ended while it warmed up (%s)", self.alias, type(error).__name__)
            return False
        except (ServiceError, ActorGone) as error:
            logger.warning("model %s is loaded, but was not warmed up (%s)", self.alias, type(error).__name__)
        else:
            stopped = ", until another model was wanted" if self._warming.cancelled_caught else ""
            logger.info("model %s warmed up for %.1f s%s", self.alias, trio.current_time() - began, stopped)
        finally:
            self._warming = None
        return True

    async def _run(self, lease: m.Lease, model: Model, scope: trio.CancelScope) -> None:
        events, reports = trio.open_memory_channel[Received](0)
        # No job follows it.
        reports.close()
        run = m.Run(lease=lease, request=warm_up_request(model), run_id=RUN_ID, events=events, is_warm_up=True)
        with scope:
            await self._generator.ask(run)
        if scope.cancelled_caught:
            self._generator.tell_latest(m.CancelRun(run_id=run.run_id), key=run.run_id)
            # The lease is held until it has ended: without leases what is free is measured at rest.
            await self._generator.ask(m.AwaitEngine())

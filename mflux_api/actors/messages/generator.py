"""What a generator is told and asked: the work of one engine child."""

import attrs
import trio

from mflux_api.actors.mailbox import Ask, send_lossy
from mflux_api.actors.messages.engine import EngineState, Lease
from mflux_api.engine import protocol
from mflux_api.engine.interface import EngineId, Received
from mflux_api.errors import GenerationFailed
from mflux_api.images.run_inputs import RunInputs
from mflux_api.jobs.job import Timings
from mflux_api.jobs.resolve import ResolvedRequest


class LoadCancelled(Exception):
    """A load was stopped, because it was not wanted any more."""


class StaleLease(Exception):
    """The lease belongs to an engine child that is gone; acquire again."""


class ModelRefused(GenerationFailed):
    """The engine died over the model too often, and does not try it again now; another engine may."""


@attrs.frozen(kw_only=True)
class Resident:
    """A model in the memory of one engine child."""

    engine: EngineId
    incarnation: int
    seconds: float
    weights_bytes: int = 0
    """What its weights take; 0 where components are read only when a run needs them."""
    warning: str = ""
    """What an operator should know."""


@attrs.frozen(kw_only=True)
class LoadModel(Ask[Resident]):
    """Have the engine load a checkpoint; fails with :class:`LoadCancelled` when it was stopped unwanted."""

    command: protocol.LoadModel
    updates: trio.MemorySendChannel[protocol.LoadProgress] | None = attrs.field(default=None, eq=False, repr=False)
    """Gets how far it is, lossy; once its reader is closed the load is not wanted any more."""

    @property
    def wanted(self) -> bool:
        """Whether the load is to go on."""
        followed = self.updates is None or self.updates.statistics().open_receive_channels > 0
        return followed and self.reply.wanted

    def tell(self, progress: protocol.LoadProgress) -> None:
        """Tell the asker how far it is."""
        if self.updates is not None:
            send_lossy(self.updates, progress)


@attrs.frozen(kw_only=True)
class LoadAbandoned:
    """Some load is not wanted any more, as its channel says: stop it, or do not begin it."""


@attrs.frozen(kw_only=True)
class UnloadModel(Ask[None]):
    """Have the engine drop a model; answered when its memory is free."""

    command: protocol.UnloadModel


@attrs.frozen(kw_only=True)
class Together:
    """Runs that are to share their passes; one that does not come in time runs alone."""

    id: int
    runs: int
    """How many there are."""
    place: int
    """The run's own among them."""


@attrs.frozen(kw_only=True)
class Run(Ask[Timings]):
    """Run a request on a leased model; the engine's events on the way go to ``events``."""

    lease: Lease
    request: ResolvedRequest
    run_id: int
    """Unique for this run; also what :class:`CancelRun` names."""
    events: trio.MemorySendChannel[Received] = attrs.field(eq=False, repr=False)
    """Gets stages, steps, previews and images as the engine sent them; the answer follows the last."""
    inputs: RunInputs = attrs.field(factory=RunInputs, repr=False)
    previews: bool = False
    """Whether someone follows its previews already."""
    together: Together | None = None
    """The runs that it shares its passes with; ``None`` where it runs alone."""
    is_warm_up: bool = False
    """It is no job's: what it compiles is of use however late it stops, so its child is not killed for that."""


@attrs.frozen(kw_only=True)
class ShowPreviews:
    """Someone follows the run's previews: they are made from its next step on."""

    run_id: int


@attrs.frozen(kw_only=True)
class CancelRun:
    """The run is not wanted any more: free the engine at the next step."""

    run_id: int


@attrs.frozen(kw_only=True)
class GetEngine(Ask[EngineState]):
    """Read the state of the engine."""


@attrs.frozen(kw_only=True)
class AwaitEngine(Ask[EngineState]):
    """Read the state of the engine once a child is up and has nothing to do; an engine that is degraded refuses."""


@attrs.frozen(kw_only=True)
class MeasureMemory(Ask[EngineState]):
    """Read the state of the engine with its next heartbeat, which says what memory is free now."""


GeneratorMessage = (
    LoadModel | LoadAbandoned | UnloadModel | Run | ShowPreviews | CancelRun | GetEngine | AwaitEngine | MeasureMemory
)

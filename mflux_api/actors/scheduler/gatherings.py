"""Jobs that are to share their passes: from the first one, which has an engine, until they set off together."""

import itertools
from collections.abc import Hashable

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.scheduler.entries import Entry
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.engine.protocol import MAX_SHARED_IMAGES
from mflux_api.jobs.resolve import ResolvedRequest


def shared_by(request: ResolvedRequest) -> Hashable | None:
    """Return what another job must have in common with one to share its passes; ``None`` where none may.

    Prompts and seeds may differ. Passes that begin with images of their client, or that take the least memory, are not
    shared, and none is that is full.
    """
    alone = request.low_ram or request.upscaling is not None or request.inputs or request.partial_images
    if alone or request.num_images >= MAX_SHARED_IMAGES:
        return None
    return (request.model, request.size, request.steps, request.guidance, request.lora_files, request.lora_scales)


@attrs.define(eq=False)
class Gathering:
    """The jobs of one engine that set off together; others join until it is closed."""

    id: int
    engine: m.EngineStatus
    shared: Hashable
    """What they have in common."""
    members: list[Entry] = attrs.field(factory=list)
    closed: trio.Event = attrs.field(factory=trio.Event)
    """Set once no more join: there is no room, or the time is over."""

    @property
    def room(self) -> int:
        """How many more images there is room for."""
        return MAX_SHARED_IMAGES - sum(entry.job.request.num_images for entry in self.members)

    def has_place_for(self, entry: Entry) -> bool:
        """Whether a job may join."""
        request = entry.job.request
        return not entry.has_failed and request.num_images <= self.room and shared_by(request) == self.shared

    def leave(self, entry: Entry) -> None:
        """Take out a job whose attempt is over."""
        self.members.remove(entry)

    def together(self, entry: Entry) -> m.Together | None:
        """Return what the engine is told of those that are in it now, as of one of them; ``None`` where it is alone."""
        if len(self.members) == 1:
            return None
        return m.Together(id=self.id, runs=len(self.members), place=self.members.index(entry))


class Gatherings:
    """The gatherings that are open."""

    def __init__(self, window_seconds: float, queue: JobQueue, nursery: trio.Nursery) -> None:
        """Take what they are filled from.

        Args:
            window_seconds: how long one is open; with 0 there is none.
            queue: the jobs that wait.
            nursery: where their time passes.
        """
        self._window = window_seconds
        self._queue = queue
        self._nursery = nursery
        self._ids = itertools.count(1)
        self._open: list[Gathering] = []

    def begin(self, entry: Entry, engine: m.EngineStatus) -> Gathering | None:
        """Return a gathering with a job that was given to an engine; ``None`` where it runs alone."""
        shared = shared_by(entry.job.request)
        if not self._window or shared is None or entry.has_failed:
            return None
        gathering = Gathering(next(self._ids), engine, shared, [entry])
        self._open.append(gathering)
        self._nursery.start_soon(self._close_in_time, gathering)
        return gathering

    def next(self) -> tuple[Entry, Gathering] | None:
        """Take the next waiting job out of the queue that joins a gathering, and return both."""
        for gathering in self._open:
            entry = self._queue.take_first(gathering.has_place_for)
            if entry is None:
                continue
            gathering.members.append(entry)
            if not gathering.room:
                self._close(gathering)
            return entry, gathering
        return None

    async def _close_in_time(self, gathering: Gathering) -> None:
        with trio.move_on_after(self._window):
            await gathering.closed.wait()
        self._close(gathering)

    def _close(self, gathering: Gathering) -> None:
        if gathering in self._open:
            self._open.remove(gathering)
            gathering.closed.set()

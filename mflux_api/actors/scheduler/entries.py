"""A job that is not finished, as the scheduler knows it: its state, and everything that belongs to its attempts."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Protocol

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.engine.interface import EngineId
from mflux_api.errors import ServiceError
from mflux_api.jobs.job import Job, StoredImage
from mflux_api.jobs.progress import ProgressTracker
from mflux_api.jobs.warnings import MAX_WARNINGS


class JobState(Enum):
    """Where an unfinished job is; see :data:`TRANSITIONS`."""

    PERSISTING = auto()
    """On its way into the store; it has no place in the queue yet."""
    WAITING = auto()
    """In the queue, and due when its turn comes."""
    DOWNLOADING = auto()
    """In the queue, and overtaken by others while its model is being brought to disk."""
    RUNNING = auto()
    """An engine is taken for it."""
    SAVING = auto()
    """The engine is free again; what it made is still being written."""
    HALTED = auto()
    """Its run was stopped without an end; it is about to go back to the queue."""
    ENDING = auto()
    """One task is committing its end; no other may."""
    ENDED = auto()


class JobEvent(Enum):
    """What happens to an unfinished job."""

    KEPT = auto()
    """The store has it, and it takes its place in the queue."""
    FOUND_RUNNING = auto()
    """At a start: it ran when the scheduler or the service ended."""
    DOWNLOAD_BEGAN = auto()
    DOWNLOADED = auto()
    DISPATCHED = auto()
    ENGINE_FREED = auto()
    """The engine has nothing more to do for it."""
    HALT = auto()
    """A drain stops its run."""
    REQUEUED = auto()
    """Its attempt is over without an end."""
    END = auto()
    """It is to end: completed, failed or cancelled."""
    COMMITTED = auto()
    """The store has its end."""


_S, _E = JobState, JobEvent
TRANSITIONS: Mapping[tuple[JobState, JobEvent], JobState] = {
    (_S.PERSISTING, _E.KEPT): _S.WAITING,
    (_S.PERSISTING, _E.FOUND_RUNNING): _S.HALTED,
    (_S.WAITING, _E.DOWNLOAD_BEGAN): _S.DOWNLOADING,
    (_S.WAITING, _E.DISPATCHED): _S.RUNNING,
    (_S.WAITING, _E.END): _S.ENDING,
    (_S.DOWNLOADING, _E.DOWNLOADED): _S.WAITING,
    (_S.DOWNLOADING, _E.END): _S.ENDING,
    (_S.RUNNING, _E.ENGINE_FREED): _S.SAVING,
    (_S.RUNNING, _E.HALT): _S.HALTED,
    (_S.RUNNING, _E.REQUEUED): _S.WAITING,
    (_S.RUNNING, _E.END): _S.ENDING,
    (_S.SAVING, _E.END): _S.ENDING,
    (_S.HALTED, _E.REQUEUED): _S.WAITING,
    (_S.HALTED, _E.END): _S.ENDING,
    (_S.ENDING, _E.COMMITTED): _S.ENDED,
}
"""State and event → next state; what is not here cannot happen."""

QUEUED = frozenset({JobState.WAITING, JobState.DOWNLOADING})
"""In the queue."""
ACCEPTED = QUEUED | {JobState.PERSISTING}
"""What counts as queued: also a job on its way into the store, so that no two take one place."""
AT_WORK = frozenset({JobState.RUNNING, JobState.SAVING, JobState.HALTED})
"""An attempt is under way."""
OVER = frozenset({JobState.ENDING, JobState.ENDED})
"""Its end is being committed, or was."""


class ImpossibleEvent(Exception):
    """A job's state does not allow that event: a defect."""


class Watcher(Protocol):
    """Is told of every change of an entry that it watches, before it happens."""

    def changes(self, entry: "Entry", state: JobState) -> None:
        """Note that an entry changes, and its next state."""


def _tell_watcher(entry: "Entry", attribute: "attrs.Attribute[Any]", value: Any) -> Any:
    """Let the queue know that an entry changes, whichever part of the scheduler changes it."""
    if entry.watcher is not None:
        entry.watcher.changes(entry, value if attribute.name == "state" else entry.state)
    return value


@attrs.define(eq=False)
class Entry:
    """A job that is not finished, as the scheduler knows it."""

    job: Job
    number: int
    """Order among the jobs of its caller: a higher priority first, then the order of acceptance."""
    tracker: ProgressTracker
    turn: int | None = None
    """Its caller's turn when it was last given to an engine: a job that goes back does not wait for another."""
    watcher: Watcher | None = attrs.field(default=None, repr=False)
    """The queue that it is in."""
    state: JobState = attrs.field(default=JobState.PERSISTING, on_setattr=_tell_watcher)
    images: list[StoredImage] = attrs.field(factory=list)
    late: list[StoredImage] = attrs.field(factory=list)
    """Images that were on disk only when their attempt was over."""
    warnings: tuple[str, ...] = ()
    """What its runs, this one or an earlier one, did not do of what was asked for."""
    overtaken: int = 0
    """How often its caller's later jobs ran before it, until it last became ready; since then its order counts."""
    out_of_memory: bool = False
    """There is evidence that the last engine that died with it inside was out of memory."""
    engine: m.EngineStatus | None = None
    """What runs it, as it was when the job was given to it; ``None`` while it does not run."""
    failed_on: EngineId | None = attrs.field(default=None, on_setattr=_tell_watcher)
    """The engine that could not complete its last attempt, until the next one; any other is better."""
    refused_by: set[EngineId] = attrs.field(factory=set)
    """The engines that do not try its model again now, because they died over it."""
    began: bool = False
    """Whether the engine was seen loading its model during this attempt."""
    passed: trio.Event = attrs.field(factory=trio.Event)
    """Set when the next job of its engine may end: its attempt is over, or will not end it."""
    leaving: bool = False
    """Whether its engine is free in a moment: the next job may be given to it."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Of what is under way for it: the attempt, or the wait for its model."""
    kept: trio.Event = attrs.field(factory=trio.Event)
    """Set once the store has it, or has refused it."""
    answerable: trio.Event = attrs.field(factory=trio.Event)
    """Set once those who wait for its end can be answered: the store has it, or said that it cannot write it now."""
    position: object = None
    """How far it is in what its ETA is made of."""
    progressed_at: float | None = None
    """Since when, by Trio's clock."""
    request_id: str = ""
    """Of the HTTP request that it came by; empty where it came otherwise, or before the last start."""
    previewed: trio.Event = attrs.field(factory=trio.Event)
    """Set once someone follows its previews."""
    companions: object | None = None
    """What it has in common with the jobs that it shares its passes with; ``None`` where it runs alone."""
    unwritten: ServiceError | None = None
    """Why the store does not have its end yet; it is asked again."""

    @property
    def has_failed(self) -> bool:
        """Whether an attempt at it ended in a death: it runs alone then, so that no other job meets the next."""
        return bool(self.job.engine_deaths or self.job.service_deaths)

    def warn(self, warning: str) -> None:
        """Keep a warning of its run; an earlier attempt may have given it, too."""
        if warning not in self.warnings and len(self.warnings) < MAX_WARNINGS:
            self.warnings = (*self.warnings, warning)

    def on(self, event: JobEvent) -> None:
        """Take the job on to its next state.

        Raises:
            ImpossibleEvent: its state does not allow that.
        """
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise ImpossibleEvent(f"job {self.job.id}: {event.name} while {self.state.name}") from None

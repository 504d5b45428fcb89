"""Jobs in the plan of their engines: how far one is that runs, and in which order those that wait will run."""

from collections import Counter
from collections.abc import Iterator, Sequence

import attrs
import trio

from mflux_api.actors.scheduler.engine_plan import NOTHING_DONE, Done, EnginePlan
from mflux_api.actors.scheduler.entries import Entry, JobState
from mflux_api.jobs.job import Stage

PLANNED = 32
"""Waiting jobs that are planned one by one for an ETA, where there are several engines."""

PLANNED_WITH_LOADS = 128
"""The same where models are loaded between them: when a job's turn comes depends on all of them then."""

_BEGUN = frozenset({Stage.DENOISING, Stage.DECODING, Stage.SAVING})
"""Stages of a run that has begun its steps."""


def plan_job(entry: Entry, plan: EnginePlan) -> float | None:
    """Give a job to the engine that runs it, or to the first that is free, and return when it ends."""
    if entry.state is JobState.DOWNLOADING:
        return entry.tracker.latest.eta_seconds
    if entry.engine is None:
        return plan.take(entry.job.request, None)
    if entry.state is JobState.SAVING:
        # The engine is free again.
        seconds = plan.seconds(entry.job.request, entry.engine.id, _done(entry))
        return None if seconds is None else round(seconds, 2)
    return plan.take(entry.job.request, entry.engine.id, _done(entry))


def note_progress(entry: Entry) -> None:
    """Note what a running job's tracker says: from where it is now its ETA falls with the time."""
    position = _position(entry)
    if position != entry.position:
        entry.position, entry.progressed_at = position, trio.current_time()


def _done(entry: Entry) -> Done:
    """Return how far a job is that runs, and since when."""
    if entry.progressed_at is None:
        return NOTHING_DONE
    return attrs.evolve(_position(entry), seconds=trio.current_time() - entry.progressed_at)


def _position(entry: Entry) -> Done:
    tracker, latest = entry.tracker, entry.tracker.latest
    loaded = 1.0
    if latest.stage is Stage.LOADING:
        loaded = (latest.bytes_done or 0) / latest.bytes_total if latest.bytes_total else 0.0
    return Done(
        loaded=loaded,
        begun=latest.stage in _BEGUN,
        steps=tracker.steps_ahead,
        images=tracker.images_saved,
    )


class ReadyFirst:
    """Jobs that wait, as the queue gives them to engines: one whose model is in memory goes before others."""

    def __init__(self, entries: Sequence[Entry], overtaken: int, max_skips: int) -> None:
        """Take the jobs.

        Args:
            entries: in the order in which they are due.
            overtaken: how often the first was overtaken so far; no other was so more often.
            max_skips: how often one may be.
        """
        self._left = list(entries)
        self._overtaken = Counter({entries[0].number: overtaken}) if entries else Counter[int]()
        self._max_skips = max_skips

    def order(self, plan: EnginePlan) -> Iterator[Entry]:
        """Yield each in its turn; it is planned before the next is chosen."""
        while self._left:
            place = self._next_place(plan)
            if place:
                self._overtaken.update(each.number for each in self._left[:place])
            yield self._left.pop(place)

    def _next_place(self, plan: EnginePlan) -> int:
        models, first = plan.models_at_hand(), self._left[0]
        if first.job.model in models or self._overtaken[first.number] >= self._max_skips:
            return 0
        ready = (place for place, each in enumerate(self._left[:PLANNED_WITH_LOADS]) if each.job.model in models)
        return next(ready, 0)

"""The order of the queue: callers with waiting jobs one after the other, and the jobs of each by their numbers.

A job that may go before those of other callers is in a lane of its own: higher lanes come first, whole.
"""

import itertools
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping
from typing import TypeVar

import attrs

from mflux_api.actors.scheduler.ready_jobs import ReadyJobs
from mflux_api.actors.scheduler.work_ahead import WorkAhead
from mflux_api.jobs.estimates import Estimates

SAMPLED = 8
"""Other callers whose work before a job is summed up, at 50 to 100 µs each; that of more is taken to be like theirs."""

LANE_TURNS = 1 << 40
"""Turns between two lanes, so that a turn alone says which of two callers is due first."""

Place = tuple[int, int]
"""A caller's turn and a job's number: of two jobs that could run next, the one with the smaller place is due first."""

K = TypeVar("K", bound=Hashable)


@attrs.define(eq=False)
class _Caller:
    """What one caller has in the queue."""

    name: str
    lane: "_Lane"
    turn: int
    """Order among the callers; one that was served gets a new one, behind all others."""
    work: WorkAhead
    numbers: list[int] = attrs.field(factory=list)
    """Its waiting jobs in their order."""
    ready: ReadyJobs = attrs.field(factory=ReadyJobs)
    """Those that any free engine may take, with the overtakings within this caller's own jobs."""
    ready_models: Counter[str] = attrs.field(factory=Counter)
    overtaken: int = 0
    """How often a later caller was served before it, until it last had a job ready; since then the order counts."""


@attrs.define(eq=False)
class _Lane:
    """The callers whose jobs go before those of every lower lane."""

    height: int
    callers: dict[str, _Caller] = attrs.field(factory=dict)
    in_turn: list[int] = attrs.field(factory=list)
    by_length: defaultdict[int, list[int]] = attrs.field(factory=lambda: defaultdict(list))
    """Turns by how many jobs their callers have: of those with as many, it is enough to count."""
    jobs: int = 0


class RoundRobin:
    """Numbers of waiting jobs by their callers.

    A caller that was served goes behind the others, so that each is served once before any is served twice. What is
    asked costs logarithms, times the number of different lengths that the callers' own queues have.
    """

    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._turns = itertools.count()
        # The highest first; there are at most as many as there are priorities.
        self._lanes: dict[int, _Lane] = {}
        self._by_turn: dict[int, _Caller] = {}
        self._ready = ReadyJobs()
        self._caller_of: dict[int, _Caller] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._caller_of

    # --- who waits ---

    def add(self, number: int, caller: str, turn: int | None = None, *, lane: int = 0) -> None:
        """Add a job that waits.

        Args:
            number: the job's order among those of its caller.
            caller: whose it is.
            turn: the caller's when the job was taken, where it comes back: it keeps its place.
            lane: the height of the lane that the job is in; of its caller's jobs in others it knows nothing.
        """
        known = self._lane(lane).callers.get(caller)
        if known is None:
            known = _Caller(
                caller, self._lane(lane), self._next_turn(lane) if turn is None else turn, WorkAhead(self._estimates)
            )
            known.lane.callers[caller] = known
            self._enter(known)
        elif turn is not None and turn < known.turn:
            self._move(known, turn)
        self._caller_of[number] = known
        _note_length(known.lane.by_length, known.turn, len(known.numbers), len(known.numbers) + 1)
        insort(known.numbers, number)
        known.lane.jobs += 1

    def _lane(self, height: int) -> _Lane:
        if height not in self._lanes:
            self._lanes[height] = _Lane(height)
            self._lanes = dict(sorted(self._lanes.items(), reverse=True))
        return self._lanes[height]

    def _next_turn(self, lane: int) -> int:
        return next(self._turns) - lane * LANE_TURNS

    def remove(self, number: int) -> None:
        """Take a job out."""
        caller = self._caller_of.pop(number)
        del caller.numbers[bisect_left(caller.numbers, number)]
        caller.lane.jobs -= 1
        _note_length(caller.lane.by_length, caller.turn, len(caller.numbers) + 1, len(caller.numbers))
        if not caller.numbers:
            self._leave(caller)
            del caller.lane.callers[caller.name]

    def serve(self, number: int) -> int:
        """Take a job out because it runs: its caller goes behind the others. Return the turn that it had."""
        caller = self._caller_of[number]
        turn = caller.turn
        self.remove(number)
        if caller.numbers:
            self._move(caller, self._next_turn(caller.lane.height))
        return turn

    def _enter(self, caller: _Caller) -> None:
        self._by_turn[caller.turn] = caller
        insort(caller.lane.in_turn, caller.turn)
        if caller.numbers:
            insort(caller.lane.by_length[len(caller.numbers)], caller.turn)
        if caller.ready_models:
            self._ready.add(caller.turn, caller.ready_models, caller.overtaken)

    def _leave(self, caller: _Caller) -> None:
        del self._by_turn[caller.turn]
        del caller.lane.in_turn[bisect_left(caller.lane.in_turn, caller.turn)]
        if caller.numbers:
            _remove(caller.lane.by_length, len(caller.numbers), caller.turn)
        if caller.turn in self._ready:
            self._ready.remove(caller.turn)

    def _move(self, caller: _Caller, turn: int) -> None:
        self._leave(caller)
        caller.turn, caller.overtaken = turn, 0
        self._enter(caller)

    # --- their order ---

    def position(self, number: int) -> int:
        """Return a job's place among the waiting, counted from 1; 0 when it does not wait."""
        caller = self._caller_of.get(number)
        if caller is None:
            return 0
        position = 1 + sum(lane.jobs for lane in self._lanes_before(caller.lane))
        # So many jobs of each caller come before it, and one more of the callers before its own.
        before = bisect_left(caller.numbers, number)
        for length, turns in caller.lane.by_length.items():
            position += min(length, before) * len(turns)
            if length > before:
                position += bisect_left(turns, caller.turn)
        return position

    def __iter__(self) -> Iterator[int]:
        """Go through the numbers in the order in which they are due."""
        for lane in self._lanes.values():
            yield from self._of_lane(lane)

    def _lanes_before(self, lane: _Lane) -> Iterator[_Lane]:
        return itertools.takewhile(lambda each: each is not lane, self._lanes.values())

    def _of_lane(self, lane: _Lane) -> Iterator[int]:
        place = 0
        callers: Iterator[_Caller] = map(self._by_turn.__getitem__, lane.in_turn)
        while True:
            more = list[_Caller]()
            for caller in callers:
                yield caller.numbers[place]
                if len(caller.numbers) > place + 1:
                    more.append(caller)
            if not more:
                return
            place, callers = place + 1, iter(more)

    # --- which is due ---

    def set_ready(self, number: int, model: str, overtaken: int) -> None:
        """Note that any free engine may take a job, which was overtaken so often by others of its caller."""
        caller = self._caller_of[number]
        caller.ready.add(number, (model,), overtaken)
        caller.ready_models[model] += 1
        if caller.ready_models[model] == 1:
            self._models_changed(caller)

    def unset_ready(self, number: int) -> int | None:
        """Note the contrary; return how often it was overtaken, or ``None`` if it was not ready."""
        caller = self._caller_of[number]
        if number not in caller.ready:
            return None
        (model,) = caller.ready.models(number)
        caller.ready_models[model] -= 1
        if not caller.ready_models[model]:
            del caller.ready_models[model]
            self._models_changed(caller)
        return caller.ready.remove(number)

    def _models_changed(self, caller: _Caller) -> None:
        if caller.turn in self._ready:
            caller.overtaken = self._ready.remove(caller.turn)
        if caller.ready_models:
            self._ready.add(caller.turn, caller.ready_models, caller.overtaken)

    def place(self, number: int) -> Place:
        """Return the place of a job that waits."""
        return self._caller_of[number].turn, number

    def first(self) -> Place | None:
        """Return the first ready job: the first of the first caller that has one."""
        turn = self._ready.first()
        number = None if turn is None else self._by_turn[turn].ready.first()
        return None if turn is None or number is None else (turn, number)

    def first_of(self, models: Iterable[str]) -> Place | None:
        """Return the first ready job on one of the models, of the first caller that has one."""
        wanted = tuple(models)
        turn = self._ready.first_of(wanted)
        number = None if turn is None else self._by_turn[turn].ready.first_of(wanted)
        return None if turn is None or number is None else (turn, number)

    def most_overtaken_before(self, place: Place) -> int:
        """Return how often that ready job or caller before a place was overtaken that was it most often, or -1."""
        turn, number = place
        return max(self._ready.most_overtaken_before(turn), self._by_turn[turn].ready.most_overtaken_before(number))

    def overtaken(self, number: int) -> int:
        """Return how often a job, or its caller, was overtaken since it became ready; 0 for one that is not."""
        caller = self._caller_of[number]
        own = caller.ready.overtaken(number) if number in caller.ready else 0
        return max(own, self._ready.overtaken(caller.turn) if caller.turn in self._ready else 0)

    def overtake(self, place: Place) -> None:
        """Count an overtaking of the callers before a place, and of its own caller's jobs before it."""
        turn, number = place
        self._ready.overtake(turn)
        self._by_turn[turn].ready.overtake(number)

    # --- how much work lies before one ---

    def work(self, number: int) -> WorkAhead:
        """Return where the work of the jobs of a job's caller is counted."""
        return self._caller_of[number].work

    def seconds_ahead(self, number: int, planned: Mapping[int, int], device: str | None) -> float | None:
        """Return how long the jobs before one take on a kind of device, one after the other.

        Args:
            number: the job.
            planned: how many jobs of each caller, by its turn, come first and are left out.
            device: the kind of device.

        Returns:
            ``None`` where nothing is known of one of them.
        """
        own = self._caller_of[number]
        place = bisect_left(own.numbers, number)
        seconds, others, counted = 0.0, 0.0, 0
        for caller in self._sample(own):
            first = planned.get(caller.turn, 0)
            end = len(caller.numbers)
            if caller.lane is own.lane:
                end = min(end, place + (caller.turn < own.turn))
            if end <= first:
                continue
            last = caller.numbers[end] if end < len(caller.numbers) else None
            each = caller.work.seconds_between(caller.numbers[first] if first else None, last, device)
            if each is None:
                return None
            if caller is own:
                seconds += each
            else:
                others += each
                counted += end - first
        if counted:
            own_ahead = max(0, place - planned.get(own.turn, 0))
            ahead = self.position(number) - 1 - sum(planned.values()) - own_ahead
            seconds += others * ahead / counted
        return seconds

    def _sample(self, own: _Caller) -> Iterator[_Caller]:
        yield own
        lanes = (*self._lanes_before(own.lane), own.lane)
        others = (caller for lane in lanes for caller in lane.callers.values() if caller is not own)
        yield from itertools.islice(others, SAMPLED)


def _note_length(by_length: defaultdict[int, list[int]], turn: int, before: int, after: int) -> None:
    """Note how many jobs the caller of a turn has, and had."""
    if before:
        _remove(by_length, before, turn)
    if after:
        insort(by_length[after], turn)


def _remove(by_key: MutableMapping[K, list[int]], key: K, item: int) -> None:
    items = by_key[key]
    del items[bisect_left(items, item)]
    if not items:
        del by_key[key]

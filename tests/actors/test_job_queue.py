"""The queue against a plain list with the same rules, and what it costs when it is long."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mflux_api.actors import messages as m
from mflux_api.actors.scheduler.entries import Entry, JobEvent, JobState
from mflux_api.actors.scheduler.job_plan import PLANNED
from mflux_api.actors.scheduler.job_queue import SETTLED, JobQueue
from mflux_api.actors.scheduler.ordered_sums import OrderedSums
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.job import Job
from tests.support.crew import a_job

READY = m.EngineCondition.READY
MODELS = ("a", "b", "c")
CALLERS = ("", "key 1", "10.0.0.1")
LONGEST_SECONDS = 3.0 * 4 + 0.5
"""What a job on the last of them takes, in four steps."""


def _engine(engine: str, models: Sequence[str] = ()) -> m.EngineStatus:
    return m.EngineStatus(id=engine, condition=READY, models=tuple(models), device="cpu")


def _estimates() -> Estimates:
    estimates = Estimates()
    for place, model in enumerate(MODELS):
        job = a_job(model=model)
        estimates.add_step(job.request, "cpu", 1.0 + place)
        estimates.add_rest(job.request, "cpu", 0.5)
    return estimates


def _queue_name(entry: Entry) -> str:
    """Who takes turns: a caller, once for each priority that counts among all."""
    return f"{entry.job.owner} {entry.job.request.lane}"


def _prioritized(job: Job, priority: int, *, among_all: bool) -> Job:
    request = attrs.evolve(job.request, priority=priority, lane=priority if among_all else 0)
    return attrs.evolve(job, request=request)


@attrs.define
class PlainList:
    """The rules as they are told, on a list: callers in turn, and each caller's jobs by priority, then as they came."""

    waiting: list[Entry] = attrs.field(factory=list)
    turns: dict[str, int] = attrs.field(factory=dict)
    """The turn of each caller that waits."""
    served: dict[int, int] = attrs.field(factory=dict)
    """The turn of its caller when a job was last taken."""
    skipped: Counter[str] = attrs.field(factory=Counter)
    """How often each caller was passed since it was last served."""
    overtaken: Counter[int] = attrs.field(factory=Counter)
    """How often each job was passed by others of its caller."""
    came: dict[str, int] = attrs.field(factory=dict)
    """The order of acceptance."""
    clock: Iterator[int] = attrs.field(factory=itertools.count)

    def add(self, entry: Entry) -> None:
        name = _queue_name(entry)
        self.came.setdefault(entry.job.id, len(self.came))
        turn = self.served.get(entry.number)
        if name not in self.turns:
            self.turns[name], self.skipped[name] = next(self.clock) if turn is None else turn, 0
        elif turn is not None and turn < self.turns[name]:
            self.turns[name], self.skipped[name] = turn, 0
        self.waiting.append(entry)

    def remove(self, entry: Entry) -> None:
        self.waiting.remove(entry)
        if not any(_queue_name(other) == _queue_name(entry) for other in self.waiting):
            del self.turns[_queue_name(entry)]

    def ordered(self) -> list[Entry]:
        before = Counter[str]()
        places = dict[int, tuple[int, int, int]]()
        for entry in sorted(self.waiting, key=self.rank):
            name = _queue_name(entry)
            places[entry.number] = -entry.job.request.lane, before[name], self.turns[name]
            before[name] += 1
        return sorted(self.waiting, key=lambda each: places[each.number])

    def place(self, entry: Entry) -> tuple[int, int, int, int]:
        return -entry.job.request.lane, self.turns[_queue_name(entry)], *self.rank(entry)

    def rank(self, entry: Entry) -> tuple[int, int]:
        return -entry.job.request.priority, self.came[entry.job.id]

    def next(
        self, free: Sequence[m.EngineStatus], usable: set[str], max_skips: int
    ) -> tuple[Entry, m.EngineStatus] | None:
        choices = []
        for entry in sorted(self.waiting, key=self.place):
            avoided = entry.failed_on if any(other != entry.failed_on for other in usable) else None
            engines = [engine for engine in free if engine.id != avoided]
            if entry.state is JobState.WAITING and engines:
                choices.append((entry, engines))
        chosen = (choices[0][0], choices[0][1][0]) if choices else None
        for position, (entry, engines) in enumerate(choices):
            resident = [engine for engine in engines if entry.job.model in engine.models]
            if resident:
                passed = self.passed(entry, [each for each, _ in choices[:position]])
                if all(counter[key] < max_skips for counter, key in passed):
                    for counter, key in passed:
                        counter[key] += 1
                    chosen = entry, resident[0]
                break
        if chosen is not None:
            name = _queue_name(chosen[0])
            turn = self.turns[name]
            self.remove(chosen[0])
            self.served[chosen[0].number] = turn
            if name in self.turns:
                self.turns[name], self.skipped[name] = next(self.clock), 0
        return chosen

    def passed(self, entry: Entry, before: list[Entry]) -> list[tuple[Counter[Any], Any]]:
        """What is counted when an entry overtakes: callers, its own caller's jobs, and jobs that failed before."""
        again = [each for each in before if each.failed_on is not None]
        others = {_queue_name(each) for each in before if each.failed_on is None} - {_queue_name(entry)}
        own = [each for each in before if each.failed_on is None and _queue_name(each) == _queue_name(entry)]
        return [
            *((self.skipped, name) for name in others),
            *((self.overtaken, each.number) for each in (*own, *again)),
        ]


class AnyOrder(RuleBasedStateMachine):
    """Jobs come, are downloaded, run, fail and are cancelled in any order."""

    compared = 0
    """How often all answers were compared."""

    @initialize(max_skips=st.integers(0, 3), engines=st.integers(1, 3))
    def begin(self, max_skips: int, engines: int) -> None:
        self.queue = JobQueue(_estimates())
        self.max_skips = max_skips
        self.engines = [str(number) for number in range(engines)]
        self.list = PlainList()
        self.running: list[Entry] = []

    @property
    def waiting(self) -> list[Entry]:
        return self.list.waiting

    @rule(
        model=st.sampled_from(MODELS),
        owner=st.sampled_from(CALLERS),
        downloads=st.booleans(),
        synchronous=st.booleans(),
        priority=st.sampled_from((0, 0, 0, -10, 10)),
        among_all=st.booleans(),
    )
    def job_comes(
        self, model: str, owner: str, downloads: bool, synchronous: bool, priority: int, among_all: bool
    ) -> None:
        job = a_job(model=model, synchronous=synchronous, owner=owner)
        entry = self.queue.add(_prioritized(job, priority, among_all=among_all))
        entry.on(JobEvent.KEPT)
        self.list.add(entry)
        assert self.queue.enqueue(entry) == self.list.ordered().index(entry) + 1
        if downloads:
            entry.on(JobEvent.DOWNLOAD_BEGAN)

    @precondition(lambda self: any(entry.state is JobState.DOWNLOADING for entry in self.waiting))
    @rule(data=st.data())
    def download_ends(self, data: st.DataObject) -> None:
        entries = [entry for entry in self.waiting if entry.state is JobState.DOWNLOADING]
        data.draw(st.sampled_from(entries)).on(JobEvent.DOWNLOADED)

    @rule(data=st.data())
    def next_runs(self, data: st.DataObject) -> None:
        resident = st.lists(st.sampled_from(MODELS), max_size=1)
        ids = data.draw(st.permutations(self.engines))[: data.draw(st.integers(0, len(self.engines)))]
        free = [_engine(each, data.draw(resident)) for each in ids]
        expected = self.list.next(free, set(self.engines), self.max_skips)
        chosen = self.queue.next(free, set(self.engines), self.max_skips)
        assert chosen == expected
        if chosen is None:
            return
        entry, engine = chosen
        assert entry.overtaken == self.list.overtaken[entry.number]
        entry.engine, entry.failed_on = engine, None
        entry.on(JobEvent.DISPATCHED)
        self.running.append(entry)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def run_comes_back(self, data: st.DataObject, fails: bool) -> None:
        entry = data.draw(st.sampled_from(self.running))
        self.running.remove(entry)
        assert entry.engine is not None
        entry.failed_on = entry.engine.id if fails else None
        entry.engine = None
        entry.on(JobEvent.REQUEUED)
        self.list.add(entry)
        assert self.queue.enqueue(entry) == self.list.ordered().index(entry) + 1

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data())
    def job_ends(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from([*self.running, *self.waiting]))
        (self.running if entry in self.running else self.list).remove(entry)
        self.queue.take(entry)
        entry.on(JobEvent.END)
        self.queue.forget(entry)
        entry.on(JobEvent.COMMITTED)

    @invariant()
    def everything_asked_has_the_answer_of_a_plain_list(self) -> None:
        if not hasattr(self, "queue"):
            return
        AnyOrder.compared += 1
        ordered = self.list.ordered()
        assert [self.queue.position(entry.job.id) for entry in ordered] == list(range(1, len(ordered) + 1))
        assert [self.queue.position(entry.job.id) for entry in self.running] == [0] * len(self.running)
        assert (self.queue.tally.queued(), self.queue.active()) == (len(self.waiting), len(self.running))
        entries = [*self.running, *self.waiting]
        queued = Counter(entry.job.owner for entry in self.waiting)
        assert [self.queue.tally.queued_of(owner) for owner in CALLERS] == [queued[owner] for owner in CALLERS]
        assert self.queue.tally.callers() == len(queued)
        assert self.queue.quiet() == (not self.running and not any(each.job.synchronous for each in entries))
        engines = [_engine(each) for each in self.engines]
        all_etas = self.queue.etas(engines)
        for place, entry in enumerate([*self.running, *ordered]):
            # Behind those that are planned one by one, it is right but for which engine is free first.
            exact = len(engines) == 1 or place < PLANNED
            expected = pytest.approx(all_etas[entry.job.id], abs=0.1 if exact else LONGEST_SECONDS)
            assert self.queue.eta(entry, engines) == expected
        some = [entry.job.id for entry in entries[::2]]
        whole = self.queue.snapshots(engines)
        assert list(whole) == [entry.job.id for entry in [*self.queue.at_work(), *ordered]]
        snapshots = self.queue.snapshots(engines, [*some, "unknown"])
        assert {job_id: (each.position, each.prompt) for job_id, each in snapshots.items()} == {
            job_id: (whole[job_id].position, whole[job_id].prompt) for job_id in some
        }


@pytest.mark.timeout(600)
def test_queue_answers_as_a_plain_list_whatever_happens() -> None:
    AnyOrder.compared = 0
    run_state_machine_as_test(AnyOrder, settings=settings(max_examples=100, stateful_step_count=40))
    assert AnyOrder.compared > 100


# --- several callers ---


def _queue(*jobs: tuple[str, str]) -> JobQueue:
    queue = JobQueue(_estimates())
    for owner, model in jobs:
        _comes(queue, owner, model)
    return queue


def _comes(queue: JobQueue, owner: str, model: str = "a") -> Entry:
    entry = queue.add(a_job(model=model, owner=owner))
    entry.on(JobEvent.KEPT)
    queue.enqueue(entry)
    return entry


def _run_next(queue: JobQueue, resident: str, max_skips: int) -> Entry:
    """Have one engine run the next job to its end."""
    chosen = queue.next([_engine("0", (resident,))], {"0"}, max_skips)
    assert chosen is not None
    chosen[0].on(JobEvent.DISPATCHED)
    _ends(queue, chosen[0])
    return chosen[0]


def _owners(queue: JobQueue) -> list[str]:
    owners = []
    while queue.waiting():
        owners.append(_run_next(queue, "a", 4).job.owner)
    return owners


def test_caller_with_many_jobs_does_not_keep_another_from_its_turn() -> None:
    queue = _queue(*[("greedy", "a")] * 4, ("other", "a"), ("third", "a"))
    late = _comes(queue, "other")
    assert queue.position(late.job.id) == 5
    assert _owners(queue) == ["greedy", "other", "third", "greedy", "other", "greedy", "greedy"]


@pytest.mark.parametrize(
    ("owner", "same", "other"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"),
        ("fe80::1%eth0", "fe80::2%eth0", "::1"),
        ("::ffff:10.0.0.1", "10.0.0.1", "::ffff:10.0.0.2"),
        ("key ana", "key ana", "key bob"),
        ("", "", "a:b"),
    ],
)
def test_addresses_of_one_ipv6_client_are_one_caller(owner: str, same: str, other: str) -> None:
    queue = _queue((owner, "a"), (same, "a"), (other, "a"))
    assert (queue.tally.queued_of(owner), queue.tally.queued_of(other), queue.tally.callers()) == (2, 1, 2)
    assert _owners(queue) == [owner, other, same]


def test_caller_that_comes_back_at_once_is_served_once_in_a_round() -> None:
    queue = _queue(*[("greedy", "a")] * 3, ("patient", "a"))
    owners = []
    for _ in range(6):
        owners.append(_run_next(queue, "a", 4).job.owner)
        if owners[-1] == "patient":
            _comes(queue, "patient")
    assert owners == ["greedy", "patient", "greedy", "patient", "greedy", "patient"]


def test_two_callers_with_two_models_do_not_reload_at_every_job() -> None:
    queue = _queue(*[("one", "a"), ("two", "b")] * 20)
    models = list[str]()
    while queue.waiting():
        models.append(_run_next(queue, models[-1] if models else "a", 4).job.model)
    loads = [len(list(group)) for _, group in itertools.groupby(models)]
    assert loads[:4] == [5, 5, 5, 5]
    assert len(loads) == 8


def _asks(queue: JobQueue, owner: str, priority: int, *, among_all: bool = False) -> Entry:
    entry = queue.add(_prioritized(a_job(model="a", owner=owner), priority, among_all=among_all))
    entry.on(JobEvent.KEPT)
    queue.enqueue(entry)
    return entry


def test_priority_orders_one_callers_jobs_and_takes_no_turn_of_another() -> None:
    queue = JobQueue(_estimates())
    low, usual, high = (_asks(queue, "key 1", priority) for priority in (-10, 0, 10))
    other = [_asks(queue, "key 2", 0) for _ in range(3)]
    ran = [_run_next(queue, "a", 4) for _ in range(6)]
    assert ran == [high, other[0], usual, other[1], low, other[2]]


def test_priority_among_all_goes_before_and_behind_other_callers() -> None:
    queue = JobQueue(_estimates())
    first = _asks(queue, "key 1", 10)
    last = _asks(queue, "key 2", -1, among_all=True)
    urgent = [_asks(queue, "key 2", 5, among_all=True) for _ in range(2)]
    turn = _asks(queue, "key 3", 5, among_all=True)
    assert [queue.position(entry.job.id) for entry in (urgent[0], turn, urgent[1], first, last)] == [1, 2, 3, 4, 5]
    assert [_run_next(queue, "a", 4) for _ in range(5)] == [urgent[0], turn, urgent[1], first, last]


def test_a_job_that_is_urgent_is_overtaken_for_a_resident_model_so_often_and_no_more() -> None:
    queue = JobQueue(_estimates())
    usual = [_comes(queue, "key 1", "b") for _ in range(4)]
    urgent = _asks(queue, "key 2", 10, among_all=True)
    assert [_run_next(queue, "b", 2) for _ in range(3)] == [*usual[:2], urgent]


def test_job_that_goes_back_is_its_callers_turn_again() -> None:
    queue = _queue(("one", "a"), ("two", "a"), ("one", "a"), ("three", "a"))
    chosen = queue.next([_engine("0")], {"0"})
    assert chosen is not None
    first = chosen[0]
    first.on(JobEvent.DISPATCHED)
    first.on(JobEvent.REQUEUED)
    assert queue.enqueue(first) == 1
    assert _owners(queue) == ["one", "two", "three", "one"]


def test_cancelled_jobs_of_a_caller_bring_its_others_forward() -> None:
    queue = _queue(*[("one", "a")] * 5, *[("two", "a")] * 5)
    last = _comes(queue, "one")
    assert queue.position(last.job.id) == 11
    for entry in list(queue)[:4]:
        _ends(queue, entry)
    assert queue.position(last.job.id) == 3
    assert _owners(queue) == ["one", "two", "one", "two", "two", "two", "two"]


COMING = st.lists(st.tuples(st.sampled_from(["1", "2", "3", "4"]), st.sampled_from(MODELS)), max_size=3)


@given(st.lists(COMING, min_size=1, max_size=40), st.integers(0, 3))
def test_no_caller_waits_for_more_runs_than_there_are_callers_and_skips(
    coming: list[list[tuple[str, str]]], max_skips: int
) -> None:
    queue, resident = _queue(), "a"
    # Of each caller that waits: how many runs since it came or was served, and how many it may have to wait for.
    waited, most = Counter[str](), dict[str, int]()
    while coming or queue.waiting():
        for owner, model in coming.pop() if coming else ():
            if not queue.tally.queued_of(owner):
                waited[owner], most[owner] = 0, queue.tally.callers() + max_skips
            _comes(queue, owner, model)
        if not queue.waiting():
            continue
        ran = _run_next(queue, resident, max_skips).job
        resident = ran.model
        waited.update(owner for owner in most if owner != ran.owner and queue.tally.queued_of(owner))
        assert all(waited[owner] <= most[owner] for owner in most if queue.tally.queued_of(owner))
        waited[ran.owner], most[ran.owner] = 0, queue.tally.callers() - 1 + max_skips


def test_eta_of_a_job_counts_what_lies_before_it_in_the_callers_turns() -> None:
    queue = _queue(*[(f"caller {number}", "a") for number in range(100)], *[("one", "b")] * 50)
    last = _comes(queue, "caller 99")
    engines = [_engine("0")]
    etas = queue.etas(engines)
    # Of so many callers only some are looked at, and another has longer jobs.
    assert queue.eta(last, engines) == pytest.approx(etas[last.job.id], rel=0.05)
    second = list(queue)[101]
    assert queue.position(second.job.id) == 103
    assert queue.eta(second, engines) == pytest.approx(etas[second.job.id])


# --- a long queue ---


def _long(count: int, model: Callable[[int], str] = lambda number: "a") -> JobQueue:
    """A queue in which one job runs and so many wait."""
    queue = JobQueue(_estimates())
    template = a_job().request
    for number in range(count + 1):
        request = attrs.evolve(template, model=model(number), steps=1 + number % 20)
        entry = queue.add(Job(id=f"{number:012x}", request=request, created_at=a_job().created_at))
        entry.on(JobEvent.KEPT)
        queue.enqueue(entry)
    _runs(queue)
    return queue


def _runs(queue: JobQueue) -> None:
    chosen = queue.next([_engine("0")], {"0"}, 4)
    assert chosen is not None
    entry, engine = chosen
    entry.engine = engine
    entry.on(JobEvent.DISPATCHED)


def _ends(queue: JobQueue, entry: Entry) -> None:
    queue.take(entry)
    entry.on(JobEvent.END)
    queue.forget(entry)
    entry.on(JobEvent.COMMITTED)


def _lines_of(work: Callable[[], object]) -> int:
    """How many lines of code run: what it costs, without a clock."""
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def _of_the_middle(queue: JobQueue) -> Entry:
    entry = queue.get(f"{queue.tally.queued() // 2:012x}")
    assert entry is not None
    return entry


def _submit(queue: JobQueue) -> None:
    entry = queue.add(a_job(model="a"))
    entry.on(JobEvent.KEPT)
    queue.enqueue(entry)


ENGINES = [_engine("0", "a")]
OPERATIONS: dict[str, Callable[[JobQueue], object]] = {
    "progress": lambda queue: queue.eta(queue.at_work()[0], ENGINES),
    "get": lambda queue: queue.snapshots(ENGINES, [_of_the_middle(queue).job.id]),
    "get with two engines": lambda queue: queue.snapshots([*ENGINES, _engine("1")], [_of_the_middle(queue).job.id]),
    "submit": _submit,
    "cancel": lambda queue: _ends(queue, _of_the_middle(queue)),
    "next": lambda queue: queue.next(ENGINES, {"0"}, 4),
    "next of the resident model": lambda queue: queue.next([_engine("0", "b")], {"0"}, 4),
    "next while none is resident": lambda queue: queue.next([_engine("0", "c")], {"0"}, 4),
    "status": lambda queue: (queue.tally.queued(), queue.active(), queue.tally.input_bytes(), queue.quiet()),
    "job back to its place": lambda queue: _back(queue, queue.at_work()[0]),
}


def _back(queue: JobQueue, entry: Entry) -> None:
    entry.engine, entry.failed_on = None, "0"
    entry.on(JobEvent.REQUEUED)
    queue.enqueue(entry)
    queue.next(ENGINES, {"0"}, 4)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_call_or_event_costs_no_more_in_a_long_queue(operation: str) -> None:
    def last_is_b(count: int) -> Callable[[int], str]:
        return lambda number: "b" if number == count else "a"

    lines = []
    for count in (200, 4_000):
        queue = _long(count, last_is_b(count))
        queue.eta(queue.at_work()[0], ENGINES)
        queue.snapshots(ENGINES, [_of_the_middle(queue).job.id])
        lines.append(_lines_of(lambda queue=queue: OPERATIONS[operation](queue)))  # type: ignore[misc]
    # Twenty times as many jobs: a logarithm may add a level or two.
    assert lines[1] < 2 * lines[0] + 40


def test_lining_up_costs_each_job_the_same() -> None:
    per_job = [_lines_of(lambda count=count: _long(count)) / count for count in (200, 2_000)]  # type: ignore[misc]
    assert per_job[1] < 1.5 * per_job[0]


def test_first_look_after_many_submissions_does_not_pay_for_all_of_them() -> None:
    lines = []
    for count in (2 * SETTLED - 2, 40 * SETTLED - 2):
        queue = _long(0)
        last = [_comes(queue, "") for _ in range(count)][-1]
        lines.append(_lines_of(partial(queue.eta, last, ENGINES)))
    assert lines[1] < 1.5 * lines[0] + 40


def test_overtakings_leave_nothing_behind() -> None:
    queue = _long(0)
    # Its caller stays, and with it what is counted.
    stays = queue.add(a_job(model="c"))
    stays.on(JobEvent.KEPT)
    queue.enqueue(stays)
    stays.on(JobEvent.DOWNLOAD_BEGAN)
    resident = [_engine("0", "b")]
    for number in range(500):
        for model in ("a", "b"):
            entry = queue.add(attrs.evolve(a_job(model=model), id=f"{number}{model}"))
            entry.on(JobEvent.KEPT)
            queue.enqueue(entry)
        for _ in range(2):
            chosen = queue.next(resident, {"0"}, 4)
            assert chosen is not None
            chosen[0].on(JobEvent.DISPATCHED)
            _ends(queue, chosen[0])
    (caller,) = queue._order._lanes[0].callers.values()
    assert len(list(caller.ready._overtakings)) <= 1
    assert len(list(queue._order._ready._overtakings)) <= 1


def test_sums_leave_nothing_behind() -> None:
    sums = OrderedSums()
    for number in range(0, 3_000_000, 9_973):
        sums.add(number, 3)
        assert (sums.before(number), sums.before(number + 1), sums.first()) == (0, 3, number)
        sums.remove(number)
    assert not sums
    assert all(not level for level in sums._levels)

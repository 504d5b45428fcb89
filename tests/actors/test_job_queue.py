"""The queue against a plain list with the same rules, and what it costs when it is long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import attrs
import pytest
from hypothesis import settings
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
from mflux_api.actors.scheduler.job_queue import PLANNED, JobQueue
from mflux_api.actors.scheduler.ordered_sums import OrderedSums
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.job import Job
from tests.support.crew import a_job

READY = m.EngineCondition.READY
MODELS = ("a", "b", "c")
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


def _next_of_a_list(
    waiting: list[Entry], overtaken: dict[int, int], free: Sequence[m.EngineStatus], usable: set[str], max_skips: int
) -> tuple[Entry, m.EngineStatus] | None:
    """The rules as they are told: go through the waiting, and stop at the first that was overtaken often enough."""
    choices = []
    for entry in sorted(waiting, key=lambda each: each.number):
        avoided = entry.failed_on if any(other != entry.failed_on for other in usable) else None
        engines = [engine for engine in free if engine.id != avoided]
        if entry.state is JobState.WAITING and engines:
            choices.append((entry, engines))
    for place, (entry, engines) in enumerate(choices):
        for engine in engines:
            if entry.job.model in engine.models:
                for passed, _ in choices[:place]:
                    overtaken[passed.number] += 1
                return entry, engine
        if overtaken[entry.number] >= max_skips:
            break
    return (choices[0][0], choices[0][1][0]) if choices else None


class AnyOrder(RuleBasedStateMachine):
    """Jobs come, are downloaded, run, fail and are cancelled in any order."""

    compared = 0
    """How often all answers were compared."""

    @initialize(max_skips=st.integers(0, 3), engines=st.integers(1, 3))
    def begin(self, max_skips: int, engines: int) -> None:
        self.queue = JobQueue(_estimates())
        self.max_skips = max_skips
        self.engines = [str(number) for number in range(engines)]
        self.waiting: list[Entry] = []
        self.running: list[Entry] = []
        self.overtaken: dict[int, int] = {}

    @rule(model=st.sampled_from(MODELS), downloads=st.booleans(), synchronous=st.booleans())
    def job_comes(self, model: str, downloads: bool, synchronous: bool) -> None:
        entry = self.queue.add(a_job(model=model, synchronous=synchronous))
        entry.on(JobEvent.KEPT)
        self.overtaken[entry.number] = 0
        assert self.queue.enqueue(entry) == len(self.waiting) + 1
        self.waiting.append(entry)
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
        expected = _next_of_a_list(self.waiting, self.overtaken, free, set(self.engines), self.max_skips)
        chosen = self.queue.next(free, set(self.engines), self.max_skips)
        assert chosen == expected
        if chosen is None:
            return
        entry, engine = chosen
        assert entry.overtaken == self.overtaken[entry.number]
        self.waiting.remove(entry)
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
        self.waiting.append(entry)
        before = sum(each.number < entry.number for each in self.waiting)
        assert self.queue.enqueue(entry) == before + 1

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data())
    def job_ends(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from([*self.running, *self.waiting]))
        (self.running if entry in self.running else self.waiting).remove(entry)
        self.queue.take(entry)
        entry.on(JobEvent.END)
        self.queue.forget(entry)
        entry.on(JobEvent.COMMITTED)

    @invariant()
    def everything_asked_has_the_answer_of_a_plain_list(self) -> None:
        if not hasattr(self, "queue"):
            return
        AnyOrder.compared += 1
        ordered = sorted(self.waiting, key=lambda each: each.number)
        assert [self.queue.position(entry.job.id) for entry in ordered] == list(range(1, len(ordered) + 1))
        assert [self.queue.position(entry.job.id) for entry in self.running] == [0] * len(self.running)
        assert (self.queue.accepted(), self.queue.active()) == (len(self.waiting), len(self.running))
        entries = [*self.running, *self.waiting]
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
    entry = queue.get(f"{queue.accepted() // 2:012x}")
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
    "status": lambda queue: (queue.accepted(), queue.active(), queue.input_bytes(), queue.quiet()),
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


def test_overtakings_leave_nothing_behind() -> None:
    queue = _long(0)
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
    assert len(list(queue._ready._overtakings)) <= 1


def test_sums_leave_nothing_behind() -> None:
    sums = OrderedSums()
    for number in range(0, 3_000_000, 9_973):
        sums.add(number, 3)
        assert (sums.before(number), sums.before(number + 1), sums.first()) == (0, 3, number)
        sums.remove(number)
    assert not sums
    assert all(not level for level in sums._levels)

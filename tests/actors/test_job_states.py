"""The states of an unfinished job: every state and event, and what the scheduler really does with them."""

import itertools
from pathlib import Path

import pytest

from mflux_api.actors.scheduler.job_queue import TRANSITIONS, Entry, ImpossibleEvent, JobEvent, JobState
from mflux_api.errors import InternalError
from mflux_api.jobs.job import Status
from mflux_api.jobs.progress import ProgressTracker
from mflux_api.storage.in_memory import InMemoryRepository
from tests.support.crew import a_job
from tests.support.harness import ended, gateway, request, scripted_service
from tests.support.scripted_engine import Crash, Fail, Hold, Script

S, E = JobState, JobEvent

TABLE = {
    S.PERSISTING: {E.KEPT: S.WAITING},
    S.WAITING: {E.DOWNLOAD_BEGAN: S.DOWNLOADING, E.DISPATCHED: S.RUNNING, E.END: S.ENDING},
    S.DOWNLOADING: {E.DOWNLOADED: S.WAITING, E.END: S.ENDING},
    S.RUNNING: {E.ENGINE_FREED: S.SAVING, E.HALT: S.HALTED, E.REQUEUED: S.WAITING, E.END: S.ENDING},
    S.SAVING: {E.REQUEUED: S.WAITING, E.END: S.ENDING},
    S.HALTED: {E.REQUEUED: S.WAITING, E.END: S.ENDING},
    S.ENDING: {E.COMMITTED: S.ENDED},
    S.ENDED: {},
}
"""What each event makes of each state, written down a second time; what is not here cannot happen."""


def an_entry(state: JobState) -> Entry:
    job = a_job()
    return Entry(job=job, number=0, tracker=ProgressTracker(job), state=state)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(JobState, JobEvent)))
def test_event_leads_where_the_table_says_or_cannot_happen(state: JobState, event: JobEvent) -> None:
    entry = an_entry(state)
    expected = TABLE[state].get(event)
    if expected is None:
        with pytest.raises(ImpossibleEvent, match=f"job {entry.job.id}: {event.name} while {state.name}"):
            entry.on(event)
        assert entry.state is state
    else:
        entry.on(event)
        assert entry.state is expected


def test_every_state_is_reachable_and_every_job_can_end() -> None:
    def reachable(start: JobState) -> set[JobState]:
        seen = {start}
        while found := {after for (state, _), after in TRANSITIONS.items() if state in seen} - seen:
            seen |= found
        return seen

    assert reachable(S.PERSISTING) == set(JobState)
    assert all(S.ENDED in reachable(state) for state in JobState)
    assert reachable(S.ENDED) == {S.ENDED}
    assert {event for _, event in TRANSITIONS} == set(JobEvent)


async def test_every_way_that_a_job_takes_is_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted, run, saved, retried, failed, cancelled at each state, halted; downloads are in tests/hub."""
    taken: set[tuple[JobState, JobEvent]] = set()
    on = Entry.on

    def noted(entry: Entry, event: JobEvent) -> None:
        taken.add((entry.state, event))
        on(entry, event)

    monkeypatch.setattr(Entry, "on", noted)
    running = Hold()
    script = Script(at={"step 0/2": Crash()})
    async with scripted_service(tmp_path, script) as service:
        assert (await ended(service, (await service.submit(request())).id)).engine_deaths == 1
        script.at = {"run": Fail()}
        assert (await ended(service, (await service.submit(request())).id)).status is Status.FAILED
        script.at = {"step 0/1": running}
        first, second = await service.submit(request(1)), await service.submit(request(2))
        await running.reached.wait()
        for job in (second, first):
            assert (await service.cancel(job.id)).status is Status.CANCELLED
        script.at = {"step 0/1": (running := Hold())}
        halted = await service.submit(request(3))
        await running.reached.wait()
        await service.drain(halt=True)
        assert (await service.job(halted.id)).status is Status.QUEUED
        assert (await service.cancel(halted.id)).status is Status.CANCELLED
    assert taken == {
        (S.PERSISTING, E.KEPT),
        (S.WAITING, E.DISPATCHED),
        (S.WAITING, E.END),
        (S.RUNNING, E.ENGINE_FREED),
        (S.RUNNING, E.REQUEUED),
        (S.RUNNING, E.END),
        (S.RUNNING, E.HALT),
        (S.SAVING, E.END),
        (S.HALTED, E.REQUEUED),
        (S.ENDING, E.COMMITTED),
    }


@pytest.mark.parametrize("synchronous", [True, False])
async def test_halted_job_whose_row_cannot_be_read_does_not_keep_the_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synchronous: bool
) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"step 0/1": hold})) as service:
        job = (await gateway(service).submit(request(), synchronous=synchronous)).job
        await hold.reached.wait()
        with monkeypatch.context() as patch:

            def unreadable(*_: object) -> None:
                raise InternalError("scripted")

            patch.setattr(InMemoryRepository, "get", unreadable if not synchronous else InMemoryRepository.get)
            await service.drain(halt=True)
        expected = Status.FAILED if synchronous else Status.GENERATING
        assert (await service.job(job.id)).status is expected
        assert (await gateway(service).status()).active == 0

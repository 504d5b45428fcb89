"""The states of an unfinished job: every state and event, and what the scheduler really does with them."""

import itertools
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from mflux_api.actors import downloader
from mflux_api.actors.scheduler.entries import TRANSITIONS, Entry, ImpossibleEvent, JobEvent, JobState
from mflux_api.catalog import Model
from mflux_api.config import CustomModel
from mflux_api.errors import DownloadFailed, InternalError
from mflux_api.hub.protocol import DownloadDone
from mflux_api.jobs.job import Status
from mflux_api.jobs.progress import ProgressTracker
from mflux_api.service import open_service
from mflux_api.storage.checkpoints import EMBEDDED, Checkpoints
from mflux_api.storage.in_memory import InMemoryRepository
from tests.support.crew import a_job
from tests.support.harness import ended, eventually, gateway, request, run_inline, scripted_service, settings
from tests.support.scripted_engine import Crash, Fail, Hold, Script

S, E = JobState, JobEvent

TABLE = {
    S.PERSISTING: {E.KEPT: S.WAITING, E.FOUND_RUNNING: S.HALTED},
    S.WAITING: {E.DOWNLOAD_BEGAN: S.DOWNLOADING, E.DISPATCHED: S.RUNNING, E.END: S.ENDING},
    S.DOWNLOADING: {E.DOWNLOADED: S.WAITING, E.END: S.ENDING},
    S.RUNNING: {E.ENGINE_FREED: S.SAVING, E.HALT: S.HALTED, E.REQUEUED: S.WAITING, E.END: S.ENDING},
    S.SAVING: {E.END: S.ENDING},
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


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> set[tuple[JobState, JobEvent]]:
    """Every step that any job takes during the test."""
    steps: set[tuple[JobState, JobEvent]] = set()
    on = Entry.on

    def noted(entry: Entry, event: JobEvent) -> None:
        steps.add((entry.state, event))
        on(entry, event)

    monkeypatch.setattr(Entry, "on", noted)
    return steps


class Hub:
    """Stands for the model hub: a download lasts until the test ends it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.began = 0
        self.outcome: trio.Event = trio.Event()
        self.fails = False
        self._present = False
        patch.setattr(downloader, "download_repository", self._download)
        patch.setattr(Checkpoints, "folder", self._folder)

    async def _download(self, *_: object) -> DownloadDone:
        self.began += 1
        await self.outcome.wait()
        if self.fails:
            raise DownloadFailed("scripted")
        self._present = True
        return DownloadDone(commit="0" * 40, bytes_total=1)

    def _folder(self, model: Model) -> Path | None:
        return EMBEDDED if model.embedded or self._present else None


async def test_every_step_of_the_table_is_taken_and_no_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    taken: set[tuple[JobState, JobEvent]],
) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)
    hub, running = Hub(monkeypatch), Hold()
    script = Script(at={"step 0/2": Crash()})
    custom = CustomModel(name="tiny", base="flux2-klein-4b", repo="owner/tiny")
    base = settings(tmp_path)
    options = attrs.evolve(base, models=attrs.evolve(base.models, custom=(custom,)))
    remote = attrs.evolve(request(), model="tiny")
    async with open_service(options, start_engine=script.start) as service:
        # Tried again after a crash; failed by the engine.
        assert (await ended(service, (await service.submit(request())).id)).engine_deaths == 1
        script.at = {"run": Fail()}
        assert (await ended(service, (await service.submit(request())).id)).status is Status.FAILED
        # Cancelled while its model is downloaded; failed there; downloaded and run.
        job = await service.submit(remote)
        await eventually(lambda: hub.began == 1)
        assert (await service.cancel(job.id)).status is Status.CANCELLED
        hub.fails = True
        job = await service.submit(remote)
        await eventually(lambda: hub.began == 2)
        hub.outcome.set()
        assert (await ended(service, job.id)).status is Status.FAILED
        hub.fails = False
        assert (await ended(service, (await service.submit(remote)).id)).status is Status.COMPLETED
        # Cancelled while it waits and while it runs.
        script.at = {"step 0/1": running}
        first, second = await service.submit(request(1)), await service.submit(request(2))
        await running.reached.wait()
        for job in (second, first):
            assert (await service.cancel(job.id)).status is Status.CANCELLED
        # Halted: it goes back to the queue.
        script.at = {"step 0/1": (running := Hold())}
        job = await service.submit(request(3))
        await running.reached.wait()
        await service.drain(halt=True)
        assert (await service.job(job.id)).status is Status.QUEUED
    script.at = {"step 0/1": (running := Hold())}
    async with open_service(options, start_engine=script.start) as service:
        # Halted: its caller gets an answer.
        job = (await gateway(service).submit(request(), synchronous=True)).job
        await running.reached.wait()
        await service.drain(halt=True)
        assert (await service.job(job.id)).status is Status.FAILED
    # Found running at a start.
    repository = InMemoryRepository()
    repository.insert(attrs.evolve(a_job(), status=Status.GENERATING))
    async with open_service(options, repository=repository, start_engine=script.start) as service:
        await service.drain(halt=True)
    assert taken == set(TRANSITIONS)


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

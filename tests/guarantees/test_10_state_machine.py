"""Every order of submit, progress, crash, cancel, drain and restart: the store and the events agree with a model."""

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.errors import QueueFull, ServiceError, ServiceRestarting, ShuttingDown
from mflux_api.jobs.job import StoredImage
from mflux_api.jobs.progress import Finished
from mflux_api.jobs.request import GenerateRequest
from mflux_api.service import Service, open_service
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support import harness
from tests.support.actor_crashes import crash, provoke
from tests.support.report import report
from tests.support.scripted_engine import Action, Hold, Script

pytestmark = pytest.mark.slow

T = TypeVar("T")

MAX_QUEUE = 3
MAX_ATTEMPTS = 2
MAX_DEATHS = 5
SETTLE_SECONDS = 5.0


class Gate(dict[str, Action]):
    """Holds an engine at every moment of a run until it is let on."""

    def __init__(self) -> None:
        super().__init__()
        self.moment: str | None = None
        self._held: Hold | None = None

    def get(self, moment: str, default: Any = None) -> Any:
        if not moment.startswith(("step", "image", "done")):
            return default
        self.moment, self._held = moment, Hold()
        return self._held

    def open(self) -> None:
        assert self._held is not None
        self.moment = None
        self._held.release.set()


class ServiceUnderTest:
    """A service on a store that stays, in a thread with an event loop of its own."""

    def __init__(self, folder: Path) -> None:
        self.gate = Gate()
        self.script = Script(at=self.gate)
        self.failures: list[BaseException] = []
        self._folder = folder
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait()
        assert not self.failures, self.failures

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.failures.append(error)
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        options = harness.settings(self._folder, max_queue=MAX_QUEUE, max_attempts=MAX_ATTEMPTS)
        with SqliteRepository(options.state_dir / DATABASE_NAME) as repository:
            async with (
                open_service(options, repository=repository, start_engine=self.script.start) as service,
                trio.open_nursery() as nursery,
            ):
                self.service, self.nursery = service, nursery
                self._token, self._stop = trio.lowlevel.current_trio_token(), trio.Event()
                self._ready.set()
                await self._stop.wait()
                nursery.cancel_scope.cancel()

    def call(self, question: Callable[[Service], Awaitable[T]]) -> T:
        """Ask in the service's own thread."""

        async def bounded() -> T:
            with trio.fail_after(SETTLE_SECONDS):
                return await question(self.service)

        return trio.from_thread.run(bounded, trio_token=self._token)

    def close(self) -> None:
        """End it as it stands, without a drain: that counts as no death."""
        trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join()
        assert not self.failures, self.failures


@attrs.define
class Known:
    """What the model knows of a job."""

    id: str
    moments: list[str]
    status: str = "queued"
    attempts: int = 0
    deaths: int = 0
    at: int = 0

    @property
    def over(self) -> bool:
        return self.status not in ("queued", "generating")


def moments_of(num_images: int, steps: int) -> list[str]:
    each = [[*(f"step {i}/{s}" for s in range(1, steps + 1)), f"image {i}"] for i in range(num_images)]
    return [*(moment for image in each for moment in image), "done"]


@pytest.fixture(autouse=True)
def _one_job_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the next job comes to its engine depends on the time that the last image takes, which the model does not."""
    monkeypatch.setattr("mflux_api.actors.scheduler.job_runner.SHORT_REST_SECONDS", -1.0)


class Jobs(RuleBasedStateMachine):
    """The model: a queue, one engine, and what a death costs."""

    rules_run = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mflux-api-model-"))
        self.jobs: list[Known] = []
        self.told: set[str] = set()
        self.open()

    def open(self) -> None:
        self.under_test = ServiceUnderTest(self.folder)
        self.draining = False
        self.engine_failures = 0
        self.scheduler_crashes = 0
        for job in self.jobs:
            if job.status == "generating":
                job.status = "queued"
        self.told.clear()
        self.dispatch()

    # --- the model ---

    @property
    def running(self) -> Known | None:
        return next((job for job in self.jobs if job.status == "generating"), None)

    def waiting(self) -> list[Known]:
        return [job for job in self.jobs if job.status == "queued"]

    def dispatch(self) -> None:
        waiting = self.waiting()
        if waiting and self.running is None and not self.draining:
            waiting[0].status, waiting[0].at = "generating", 0

    def died_with_its_scheduler(self, job: Known) -> None:
        job.deaths += 1
        job.status = "failed" if job.deaths >= MAX_DEATHS else "queued"

    # --- what happens ---

    @rule(num_images=st.integers(1, 2), steps=st.integers(1, 3))
    def submit(self, num_images: int, steps: int) -> None:
        request = GenerateRequest(
            prompt="x", model="demo", seed=1, width=64, height=64, steps=steps, num_images=num_images
        )
        refusal: type[ServiceError] | None = None
        if self.draining:
            refusal = ShuttingDown
        elif len(self.waiting()) >= MAX_QUEUE:
            refusal = QueueFull
        if refusal is not None:
            with pytest.raises(refusal):
                self.under_test.call(lambda service: service.submit(request))
            return
        job = self.under_test.call(lambda service: service.submit(request))
        self.jobs.append(Known(job.id, moments_of(num_images, steps)))
        self.dispatch()

    @precondition(lambda self: self.running)
    @rule(count=st.integers(1, 4))
    def progress(self, count: int) -> None:
        for _ in range(count):
            job = self.running
            if job is None:
                return
            if job.moments[job.at].startswith("step"):
                self.engine_failures = 0
            job.at += 1
            if job.at == len(job.moments):
                job.status = "completed"
                self.dispatch()
            trio.from_thread.run_sync(self.under_test.gate.open, trio_token=self.under_test._token)
            self.agrees()

    # A third death without a step in between would only add half a second of waiting.
    @precondition(lambda self: self.engine_failures < 2)
    @rule()
    def engine_crashes(self) -> None:
        self.engine_failures += 1
        job = self.running
        if job is not None:
            job.attempts += 1
            job.status = "failed" if job.attempts >= MAX_ATTEMPTS else "queued"
            self.dispatch()
        self.under_test.gate.moment = None
        trio.from_thread.run_sync(self.under_test.script.current.die, trio_token=self.under_test._token)
        self.engine_is_back()

    def engine_is_back(self) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while self.under_test.call(harness.engine_info) is None:
            assert time.monotonic() < deadline

    @precondition(lambda self: self.jobs)
    @rule(which=st.integers(0, 1000))
    def cancel(self, which: int) -> None:
        job = self.jobs[which % len(self.jobs)]
        if not job.over:
            if job.status == "generating":
                self.under_test.gate.moment = None
            job.status = "cancelled"
        assert self.under_test.call(lambda service: service.cancel(job.id)).status.value == job.status
        self.dispatch()

    # Four failures within a minute escalate; tests/guarantees/test_11_supervision.py has those.
    @precondition(lambda self: self.scheduler_crashes < 3)
    @rule()
    def scheduler_crashes_once(self) -> None:
        self.scheduler_crashes += 1
        job = self.running
        if job is not None:
            self.under_test.gate.moment = None
            self.died_with_its_scheduler(job)
        with crash(JobQueue, "snapshots"):
            self.under_test.call(lambda service: provoke(harness.gateway(service).snapshots))
        self.dispatch()

    @rule()
    def drain(self) -> None:
        self.draining = True

        async def begin(service: Service) -> None:
            async def draining() -> bool:
                return (await harness.gateway(service).status()).draining

            async def wait() -> None:
                # It ends with the service at the latest.
                with contextlib.suppress(ShuttingDown):
                    await service.drain()

            self.under_test.nursery.start_soon(wait)
            await harness.eventually(draining)

        self.under_test.call(begin)

    @rule()
    def halt(self) -> None:
        self.draining = True
        if self.running is not None:
            self.running.status = "queued"
        self.under_test.gate.moment = None
        self.under_test.call(lambda service: service.drain(halt=True))

    @rule()
    def restart(self) -> None:
        self.under_test.close()
        self.open()

    # --- what must be true ---

    @invariant()
    def agrees(self) -> None:
        type(self).rules_run += 1
        expected = [(job.id, job.status, job.attempts, job.deaths) for job in self.jobs]
        deadline = time.monotonic() + SETTLE_SECONDS
        while (seen := self.under_test.call(self.observed)) != expected or not self.engine_is_where_it_should_be():
            assert not self.under_test.failures, self.under_test.failures
            assert time.monotonic() < deadline, (seen, expected, self.under_test.gate.moment, self.running)
            time.sleep(0.001)
        self.under_test.call(self.check_queue)
        for job in self.jobs:
            if job.over and job.id not in self.told:
                self.told.add(job.id)
                self.under_test.call(partial(self.check_events, job))

    async def observed(self, service: Service) -> list[tuple[str, str, int, int]]:
        try:
            jobs = [await service.job(job.id) for job in self.jobs]
        except ServiceRestarting:
            return []
        return [(job.id, job.status.value, job.engine_deaths, job.service_deaths) for job in jobs]

    def engine_is_where_it_should_be(self) -> bool:
        job = self.running
        return job is None or self.under_test.gate.moment == job.moments[job.at]

    async def check_queue(self, service: Service) -> None:
        live = await harness.gateway(service).snapshots()
        places = {job_id: each.position for job_id, each in live.items() if each.position is not None}
        assert places == {job.id: place for place, job in enumerate(self.waiting(), start=1)}

    async def check_events(self, job: Known, service: Service) -> None:
        # An unknown event: from the first one on, whether the log is this boot's or there is none any more.
        async with await harness.gateway(service).follow(job.id, "unknown") as stream:
            events = [logged.event async for logged in stream]
        last = harness.checked(events)
        assert last.status.value == job.status
        assert sum(isinstance(event, Finished) for event in events) == 1

    async def all_images(self, service: Service) -> list[StoredImage]:
        return [image for known in self.jobs for image in (await service.job(known.id)).images]

    def teardown(self) -> None:
        shown = {Path(image.path).name for image in self.under_test.call(self.all_images)}
        self.under_test.close()
        unfinished = {job.id for job in self.jobs if not job.over}
        on_disk = {name for name in harness.images(self.folder) if name.endswith(".png")}
        shutil.rmtree(self.folder)
        assert {name for name in on_disk if name.split("-")[0] not in unfinished} == shown


def test_any_order_of_events_agrees_with_the_model(full: bool) -> None:
    options = settings(
        max_examples=300 if full else 10,
        stateful_step_count=40 if full else 20,
        database=None,
        # Making a failure small takes minutes: each try waits for what does not come.
        phases=set(Phase) if full else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Jobs, settings=options)
    report(f"{Jobs.rules_run} comparisons")
    assert Jobs.rules_run >= options.max_examples

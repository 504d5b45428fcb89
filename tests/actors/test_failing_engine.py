"""An engine whose actors keep failing, in virtual time: it costs neither its neighbour nor the jobs anything."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import MockClock

from mflux_api import tree
from mflux_api.actors import messages as m
from mflux_api.actors.generator.generator import Generator
from mflux_api.actors.mailbox import Mailbox
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.errors import EngineUnavailable
from mflux_api.jobs.job import Job, Status
from mflux_api.service import Service
from mflux_api.supervisor import Started
from tests.support.actor_crashes import crash, provoke
from tests.support.crew import fill
from tests.support.harness import (
    condition_of,
    ended,
    eventually,
    gateway,
    loads_of,
    request,
    run_inline,
    seeds_run,
    service_of,
)
from tests.support.scripted_engine import Hold, Script

TEN_MINUTES = 600.0


class Injected(Exception):
    """The failure."""


class Fault:
    """Makes the generator of engine 0 fail, at its start or at every message, until it is lifted."""

    def __init__(self, patch: pytest.MonkeyPatch, moment: str) -> None:
        self.active = True
        self.starts: Counter[str] = Counter()
        """How often the generator of each engine was started."""
        self.waits: list[float] = []
        """Seconds between each time that engine 0 gave up and its next start."""
        self._gave_up: float | None = None
        run, receive, suspend = Generator.run, Mailbox.receive, Mailbox.suspend

        async def run_or_fail(actor: Generator, status: Started) -> None:
            self.starts[actor._engine] += 1
            if actor._engine == "0" and self._gave_up is not None:
                self.waits.append(trio.current_time() - self._gave_up)
                self._gave_up = None
            if self.active and moment == "start" and actor._engine == "0":
                raise Injected
            await run(actor, status)

        async def receive_or_fail(mailbox: Mailbox[Any]) -> Any:
            message = await receive(mailbox)
            if self.active and moment == "message" and mailbox.name == f"{m.GENERATOR} 0":
                raise Injected
            return message

        def noted_suspend(mailbox: Mailbox[Any]) -> None:
            suspend(mailbox)
            self._gave_up = trio.current_time()

        patch.setattr(Generator, "run", run_or_fail)
        patch.setattr(Mailbox, "receive", receive_or_fail)
        patch.setattr(Mailbox, "suspend", noted_suspend)


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)


async def look(service: Service, seen: set[m.EngineCondition]) -> NoReturn:
    """Ask how the engines are doing, again and again, as a monitor does."""
    while True:
        seen.add(await condition_of(service))
        await trio.sleep(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "message"])
async def test_engine_that_always_fails_costs_a_healthy_one_beside_it_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, moment: str
) -> None:
    fault = Fault(monkeypatch, moment)
    scripts = {"0": Script(), "1": Script(step_seconds=1.0)}
    done: list[Job] = []
    seen: set[m.EngineCondition] = set()
    async with service_of(tmp_path, scripts) as service, trio.open_nursery() as monitor:
        monitor.start_soon(look, service, seen)

        async def follow(job_id: str) -> None:
            done.append(await ended(service, job_id))

        async with trio.open_nursery() as nursery:
            while trio.current_time() < TEN_MINUTES:
                for seed in range(2):
                    nursery.start_soon(follow, (await service.submit(request(seed))).id)
                await trio.sleep(7.0)
        assert len(done) >= 160
        assert {job.status for job in done} == {Status.COMPLETED}
        assert {(job.engine_deaths, job.service_deaths) for job in done} == {(0, 0)}
        assert m.EngineCondition.FAILED in seen
        assert fault.waits[:7] == pytest.approx([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0])
        assert {round(wait, 6) for wait in fault.waits[7:]} == {60.0}
        assert len(scripts["1"].engines) == 1, "the healthy engine keeps its child"
        assert loads_of(scripts["1"]) == 1, "and its model"
        assert fault.starts["1"] == 1
        assert seeds_run(scripts["0"]) == []

        # The fault is lifted: it comes back, takes jobs, and waits for 1 s again after it was up for a minute.
        fault.active = False
        await eventually(lambda: is_ready(service))
        holds = [Hold(), Hold()]
        for script, hold in zip(scripts.values(), holds, strict=True):
            script.at["run"] = hold
        jobs = [await service.submit(request(seed)) for seed in (100, 101)]
        for hold in holds:
            await hold.reached.wait()
            hold.release.set()
        assert [(await ended(service, job.id)).status for job in jobs] == [Status.COMPLETED] * 2
        assert len(seeds_run(scripts["0"])) == 1
        await trio.sleep(61.0)
        fault.waits.clear()
        fault.active = True
        monkeypatch.setattr(Generator, "_state", failing_once(Generator._state))
        await eventually(lambda: len(fault.waits) >= 1)
        assert fault.waits == pytest.approx([1.0])
        monitor.cancel_scope.cancel()


async def is_ready(service: Service) -> bool:
    return await condition_of(service) is m.EngineCondition.READY


@pytest.mark.parametrize("moment", ["start", "message"])
async def test_jobs_of_an_only_engine_that_always_fails_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, moment: str
) -> None:
    fault = Fault(monkeypatch, moment)
    script = Script()
    fault.active = False
    hold = Hold()
    script.at["run"] = hold
    seen: set[m.EngineCondition] = set()
    async with service_of(tmp_path, {"0": script}) as service, trio.open_nursery() as monitor:
        running, waiting = await service.submit(request(1)), await service.submit(request(2))
        await hold.reached.wait()
        fault.active = True
        monkeypatch.setattr(Generator, "_state", failing_once(Generator._state))
        monitor.start_soon(look, service, seen)
        refused = 0
        while trio.current_time() < TEN_MINUTES:
            await trio.sleep(7.0)
            if await condition_of(service) is m.EngineCondition.FAILED:
                assert (await gateway(service).status()).degraded
                with pytest.raises(EngineUnavailable):
                    await service.submit(request(3))
                refused += 1
        assert refused > 50
        assert [(await service.job(job.id)).status for job in (running, waiting)] == [Status.QUEUED] * 2
        fault.active = False
        ends = [await ended(service, job.id) for job in (running, waiting)]
        # Only what was running when the actors failed was with them.
        assert [(job.status, job.service_deaths) for job in ends] == [(Status.COMPLETED, 1), (Status.COMPLETED, 0)]
        assert not (await gateway(service).status()).degraded
        assert fault.waits[:7] == pytest.approx([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0])
        monitor.cancel_scope.cancel()


async def test_scheduler_that_restarts_hears_of_each_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    Fault(monkeypatch, "start")
    async with service_of(tmp_path, {"0": Script(), "1": Script()}) as service:
        await eventually(lambda: conditions(service, m.EngineCondition.FAILED, m.EngineCondition.READY))
        # Long enough for a wait that outlasts the restart.
        await trio.sleep(40.0)
        await restart_scheduler(service)
        with trio.fail_after(5.0):
            await eventually(lambda: conditions(service, m.EngineCondition.FAILED, m.EngineCondition.READY))
            assert (await ended(service, (await service.submit(request())).id)).status is Status.COMPLETED


async def conditions(service: Service, *expected: m.EngineCondition) -> bool:
    return tuple(view.status.condition for view in await gateway(service).engines()) == expected


async def restart_scheduler(service: Service) -> None:
    """Have it meet a defect once, and wait until it is back."""
    with crash(JobQueue, "snapshots"):
        await provoke(gateway(service).snapshots)
    await gateway(service).snapshots()


def test_word_of_a_failed_engine_reaches_a_scheduler_however_full_its_lanes_are() -> None:
    boxes = tree._Mailboxes(["0"])
    fill(boxes.scheduler, m.Drain())
    tree._tell_failed("0", boxes)
    message = boxes.scheduler._next()
    assert isinstance(message, m.EngineChanged)
    assert message.status.condition is m.EngineCondition.FAILED


def failing_once(state: Any) -> Any:
    """Fail at the first call, so that an actor that is told nothing else meets the fault."""
    calls = itertools.count()

    def first_fails(generator: Generator) -> m.EngineState:
        if next(calls) == 0:
            raise Injected
        return state(generator)  # type: ignore[no-any-return]

    return first_fails

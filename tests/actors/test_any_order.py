"""Two engines, and whatever may happen to them, to the scheduler and to the jobs, in any order and in virtual time."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Mailbox
from mflux_api.errors import EngineUnavailable, ServiceRestarting
from mflux_api.gateway.gateway import Gateway
from mflux_api.jobs.job import Job, Status
from mflux_api.service import Service
from tests.support.crew import checkpoints, run_mocked
from tests.support.harness import ended, eventually, gateway, request, run_inline, service_of
from tests.support.scripted_engine import Crash, Hold, Script

ENGINE_ACTORS = [f"{role} {engine}" for role in (m.GENERATOR, m.MODEL_LOADER) for engine in "01"]
CORE_ACTORS = [m.SCHEDULER, m.EVENT_HUB]
MAX_CORE_FAILURES = 3
"""More of them within a minute end the service, and should."""
HOUR = 3600.0


class Injected(Exception):
    """The failure of an actor."""


@attrs.define
class World:
    """A service, and what a test does to it."""

    service: Service
    scripts: dict[str, Script]
    doomed: set[str]
    jobs: list[Job] = attrs.field(factory=list)
    core_failures: int = 0

    async def do(self, step: str, number: int) -> None:
        match step:
            case "submit":
                await self._submit(number)
            case "cancel" if self.jobs:
                await self._persist(lambda way_in: way_in.cancel(self.jobs[number % len(self.jobs)].id))
            case "die":
                script = self.scripts[str(number % 2)]
                if script.alive:
                    script.current.die()
            case "keep dying":
                script = self.scripts[str(number % 2)]
                script.at["start"] = Crash(times=number % 7)
                if script.alive:
                    script.current.die()
            case "fail engine actor":
                self.doomed.add(ENGINE_ACTORS[number % len(ENGINE_ACTORS)])
                await self.look()
            case "fail core actor" if self.core_failures < MAX_CORE_FAILURES:
                self.core_failures += 1
                self.doomed.add(CORE_ACTORS[number % len(CORE_ACTORS)])
                await self.look()
            case "wait":
                await trio.sleep(number / 5)
            case "turns":
                await checkpoints(number)

    async def look(self) -> None:
        """Give every actor a message."""
        for _ in range(2):
            await self._persist(lambda way_in: way_in.engines())

    async def _submit(self, number: int) -> None:
        wanted = attrs.evolve(request(number, num_images=1 + number % 2), model=("demo", "demo-base")[number % 2])

        async def submit(way_in: Gateway) -> None:
            accepted = await way_in.submit(wanted, synchronous=number % 3 == 0)
            self.jobs.append(accepted.job)

        try:
            await self._persist(submit)
        except EngineUnavailable:
            assert (await gateway(self.service).status()).degraded

    async def _persist(self, ask: Any) -> None:
        while True:
            try:
                await ask(gateway(self.service))
            except ServiceRestarting:
                await trio.sleep(0.02)
            else:
                return


def fail_when_doomed(patch: pytest.MonkeyPatch) -> set[str]:
    """Make an actor fail at its next message once its name is in the set."""
    doomed: set[str] = set()
    receive = Mailbox.receive

    async def receive_or_fail(mailbox: Mailbox[Any]) -> Any:
        message = await receive(mailbox)
        if mailbox.name in doomed:
            doomed.discard(mailbox.name)
            raise Injected
        return message

    patch.setattr(Mailbox, "receive", receive_or_fail)
    return doomed


_STEPS = [
    "submit",
    "submit",
    "submit",
    "cancel",
    "die",
    "keep dying",
    "fail engine actor",
    "fail core actor",
    "wait",
    "turns",
]


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(_STEPS), st.integers(0, 30)), min_size=5, max_size=40))
def test_whatever_happens_every_job_ends_and_both_engines_are_used_again(steps: list[tuple[str, int]]) -> None:
    async def main() -> None:
        scripts = {engine: Script(step_seconds=0.3) for engine in "01"}
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            patch.setattr(trio.to_thread, "run_sync", run_inline)
            doomed = fail_when_doomed(patch)
            async with service_of(Path(folder), scripts) as service:
                world = World(service, scripts, doomed)
                for step, number in steps:
                    await world.do(step, number)
                with trio.fail_after(HOUR):
                    for job in world.jobs:
                        assert (await gateway(service).finished(job.id)).status.terminal
                    doomed.clear()
                    await eventually(lambda: both_are_ready(service))
                    await both_are_used(service, scripts)
                    await service.drain()

    run_mocked(main)


async def both_are_ready(service: Service) -> bool:
    conditions = Counter(engine.status.condition for engine in await gateway(service).engines())
    return conditions == {m.EngineCondition.READY: 2}


async def both_are_used(service: Service, scripts: dict[str, Script]) -> None:
    holds = [Hold(), Hold()]
    for script, hold in zip(scripts.values(), holds, strict=True):
        script.at["run"] = hold
    jobs = [await service.submit(request(seed)) for seed in range(2)]
    for hold in holds:
        await hold.reached.wait()
    for hold in holds:
        hold.release.set()
    for job in jobs:
        assert (await ended(service, job.id)).status is Status.COMPLETED

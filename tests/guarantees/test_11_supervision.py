"""Supervision: each actor fails in turn under load. The tree restarts what it says, and gives up with status 70."""

import contextlib
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.event_hub import EventHub
from mflux_api.actors.generator.generator import Generator
from mflux_api.actors.job_store import JobStore
from mflux_api.actors.mailbox import Mailbox
from mflux_api.actors.model_loader.model_loader import ModelLoader
from mflux_api.actors.scheduler.scheduler import Scheduler
from mflux_api.actors.stats import Stats
from mflux_api.cli.exit_status import EXIT_INTERNAL
from mflux_api.errors import ServiceRestarting
from mflux_api.http.front import HttpFront
from mflux_api.http.server import serve
from mflux_api.jobs.job import Status
from mflux_api.service import Service, open_service
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support import scripted_server
from tests.support.api_jobs import submit, wait_for, wait_for_end
from tests.support.harness import DEADLINE_SECONDS, eventually, gateway, loads_of, request, settings
from tests.support.scripted_engine import Script
from tests.support.server import api_client, serving

ACTORS: dict[str, Any] = {
    m.JOB_STORE: JobStore,
    m.EVENT_HUB: EventHub,
    m.GENERATOR: Generator,
    m.MODEL_LOADER: ModelLoader,
    m.SCHEDULER: Scheduler,
    m.STATS: Stats,
    m.HTTP_FRONT: HttpFront,
}
ENGINES = {m.GENERATOR, m.MODEL_LOADER}
RESTARTS = {
    m.JOB_STORE: {m.JOB_STORE, m.EVENT_HUB, m.SCHEDULER},
    m.EVENT_HUB: {m.EVENT_HUB, m.SCHEDULER},
    m.GENERATOR: ENGINES,
    m.MODEL_LOADER: ENGINES,
    m.SCHEDULER: {m.SCHEDULER},
    m.STATS: {m.STATS},
    m.HTTP_FRONT: {m.HTTP_FRONT},
}
"""Which actors are started anew when one fails: docs/architecture.md's tree and its strategies."""

JOBS = 8


class Injected(Exception):
    """The failure."""


class Doom:
    """Counts the starts of every actor, and makes one fail the next time it has a message."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.starts: Counter[str] = Counter()
        self._doomed: str | None = None
        self._front = trio.Event()
        for name, actor in ACTORS.items():
            patch.setattr(actor, "run", self._counted(name, actor.run))
        patch.setattr(Mailbox, "receive", self._receive(Mailbox.receive))
        patch.setattr("mflux_api.http.front.serve", self._serve(serve))

    def next(self, name: str) -> None:
        self._doomed = name
        if name == m.HTTP_FRONT:
            self._front.set()

    def _counted(self, name: str, run: Any) -> Any:
        async def counted(actor: Any, status: Any) -> None:
            self.starts[name] += 1
            await run(actor, status)

        return counted

    def _receive(self, receive: Any) -> Any:
        async def receive_or_fail(mailbox: Mailbox[Any]) -> Any:
            message = await receive(mailbox)
            if mailbox.role == self._doomed:
                self._doomed = None
                raise Injected
            return message

        return receive_or_fail

    def _serve(self, serve: Any) -> Any:
        async def serve_or_fail(*arguments: Any, **options: Any) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(serve, *arguments, **options))
                await self._front.wait()
                self._front = trio.Event()
                raise Injected

        return serve_or_fail


@pytest.fixture
def doom(monkeypatch: pytest.MonkeyPatch) -> Doom:
    return Doom(monkeypatch)


@pytest.mark.parametrize("name", list(RESTARTS))
async def test_actor_that_fails_under_load_restarts_what_the_tree_says_and_no_job_is_lost(
    tmp_path: Path, doom: Doom, name: str
) -> None:
    script = Script(step_seconds=0.005)
    options = settings(tmp_path)
    with trio.fail_after(DEADLINE_SECONDS), SqliteRepository(options.state_dir / DATABASE_NAME) as repository:
        async with (
            open_service(options, repository=repository, start_engine=script.start) as service,
            trio.open_nursery() as nursery,
        ):
            (url,) = await nursery.start(service.serve_http, ["127.0.0.1:0"])
            async with httpx.AsyncClient(base_url=url) as connection:
                assert (await connection.get("/api/v1/health")).status_code == 200
                kept = open_connections(connection)
                jobs = [await service.submit(request(seed, num_images=2)) for seed in range(JOBS)]
                ends: list[Status] = []
                for job in jobs:
                    nursery.start_soon(follow, service, job.id, ends)
                await eventually(lambda: len(ends) >= 2)
                before = Counter(doom.starts)
                loads = loads_of(script)
                doom.next(name)
                await gateway_answers_again(service, doom, before, name)
                await eventually(lambda: len(ends) == JOBS)
                assert ends == [Status.COMPLETED] * JOBS
                assert {each for each, count in (doom.starts - before).items() if count} == RESTARTS[name]
                assert set((doom.starts - before).values()) == {1}
                if name not in ENGINES:
                    # The engine and the model in it outlived the failure.
                    assert len(script.engines) == 1
                    assert loads_of(script) == loads
                assert (await connection.get("/api/v1/health")).json()["status"] == "healthy"
                if name != m.HTTP_FRONT:
                    assert open_connections(connection) == kept, "the connection did not stay"
            nursery.cancel_scope.cancel()


def open_connections(client: httpx.AsyncClient) -> list[int]:
    """Identities of the client's connections."""
    return [id(each) for each in client._transport._pool.connections]  # type: ignore[attr-defined]


async def follow(service: Service, job_id: str, ends: list[Status]) -> None:
    ends.append((await gateway(service).finished(job_id)).status)


async def gateway_answers_again(service: Service, doom: Doom, before: Counter[str], name: str) -> None:
    """Ask every actor, so that each has a message, until the failed one has come back."""
    way_in = gateway(service)
    while doom.starts[name] == before[name]:
        for question in (way_in.status, way_in.engines, way_in.counters):
            try:
                await question()
            except ServiceRestarting:
                continue


@pytest.mark.parametrize("name", [m.SCHEDULER, m.JOB_STORE, m.STATS])
def test_actor_that_keeps_failing_ends_the_server_with_status_70_and_one_clear_line(tmp_path: Path, name: str) -> None:
    config = '[models]\ndefault = "demo"\n'
    environ = scripted_server.environ(step_seconds=0.1, doomed=name)
    with (
        serving(tmp_path, config, environ, module=scripted_server.MODULE) as server,
        api_client(server.url) as client,
    ):
        job_id = submit(client, steps=100)
        wait_for(client, job_id, lambda job: job["progress"] > 0)
        server.process.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + 30
        with contextlib.suppress(httpx.TransportError):
            # An idle actor has nothing to fail at.
            while time.monotonic() < deadline:
                for path in ("jobs", "queue", "stats"):
                    client.get(f"/api/v1/{path}")
        assert server.process.wait(10) == EXIT_INTERNAL == 70
    last = [line for line in server.lines if line.startswith("mflux-api:")]
    assert len(last) == 1
    assert "kept failing after 3 restarts" in last[0]
    assert not any("Traceback" in line or "injected" in line for line in server.lines)
    environ = scripted_server.environ(step_seconds=0.001)
    with (
        serving(tmp_path, config, environ, module=scripted_server.MODULE) as server,
        api_client(server.url) as client,
    ):
        job = wait_for_end(client, job_id)
        assert (job["status"], job["code"]) in {("completed", None), ("failed", "SERVER_CRASHED")}
        assert server.stop() == 0

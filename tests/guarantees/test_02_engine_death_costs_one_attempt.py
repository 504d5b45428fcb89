"""An engine's death costs one attempt, and only the job inside notices."""

import contextlib
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.api_jobs import submit, wait_for, wait_for_end
from tests.support.report import report
from tests.support.server import Server, api_client, engine_of, serving

pytestmark = pytest.mark.slow

CONFIG = '[models]\ndefault = "demo"\n'
WORK = {"steps": 12, "width": 128, "height": 128, "seed": 21}
DEADLINE_SECONDS = 60.0
RESPAWN_ALLOWANCE = 0.5
"""Seconds that a respawn may take beyond what a cold child needs."""


def until(condition: Callable[[], Any], seconds: float = DEADLINE_SECONDS) -> Any:
    """Wait for something that has no event and return it."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def said(server: Server, text: str) -> int:
    """How often the log has said that."""
    return sum(text in line for line in server.lines)


def has_said_more(server: Server, text: str, than: int) -> bool:
    """Whether the log has said that more often."""
    return said(server, text) > than


def has_another_child(server: Server, pid: int) -> bool:
    """Whether a new engine was born."""
    return any(child.pid != pid for child in server.children())


class HealthWatch:
    """Asks for the health without a pause, and counts."""

    def __init__(self, url: str) -> None:
        self.answers = 0
        self.slowest = 0.0
        self.failures: list[str] = []
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "HealthWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=20) as client:
            while not self._stop.wait(0.05):
                began = time.monotonic()
                try:
                    answer = client.get("/api/v1/health")
                except httpx.HTTPError as error:
                    self.failures.append(type(error).__name__)
                    continue
                if answer.status_code != 200:
                    self.failures.append(str(answer.status_code))
                self.answers += 1
                self.slowest = max(self.slowest, time.monotonic() - began)


def attempts(client: httpx.Client, job_id: str) -> list[int]:
    """The attempts that a job's log of events tells of."""
    log = client.get(f"/api/v1/jobs/{job_id}/stream", headers={"Last-Event-ID": "unknown"}).text.splitlines()
    data = [json.loads(line[6:]) for line in log if line.startswith("data: ")]
    return sorted({event["attempt"] for event in data if "attempt" in event})


def test_killed_engine_costs_one_attempt_and_http_never_stops(tmp_path: Path, full: bool) -> None:
    rng = random.Random()
    with serving(tmp_path, CONFIG) as server, api_client(server.url) as client:
        undisturbed = wait_for_end(client, submit(client, **WORK))["result"]["images"]
        process = psutil.Process(server.process.pid)
        descriptors = process.num_fds()
        respawns: list[float] = []
        added: list[float] = []
        with HealthWatch(server.url) as watch:
            for _ in range(100 if full else 2):
                job_id = submit(client, **WORK)
                wait_for(client, job_id, lambda job: job["progress"] > 0.01)
                time.sleep(rng.uniform(0.0, 0.1))
                engine = engine_of(server)
                if client.get(f"/api/v1/jobs/{job_id}").json()["status"] != "generating":
                    # The kill came too late to hit the job.
                    continue
                ready = said(server, "is ready on")
                engine.kill()
                killed = time.monotonic()
                # What lies between the death and the birth is ours; the rest is a cold start, as slow as the machine.
                until(partial(has_another_child, server, engine.pid))
                added.append(time.monotonic() - killed)
                until(partial(has_said_more, server, "is ready on", ready))
                respawns.append(time.monotonic() - killed)
                job = wait_for_end(client, job_id)
                assert job["status"] == "completed", job
                assert job["result"]["images"] == undisturbed
                assert attempts(client, job_id) == [1, 2]
                assert [child.status() for child in server.children()].count(psutil.STATUS_ZOMBIE) == 0
                assert len(server.children()) == 1
        assert watch.failures == []
        # A connection that its client left is closed a little later.
        until(lambda: process.num_fds() <= descriptors)
        report(
            f"{len(respawns)} kills; respawns up to {max(respawns):.2f} s, {max(added):.2f} s of it before the birth; "
            f"{watch.answers} health answers, the slowest {watch.slowest * 1000:.0f} ms; {descriptors} descriptors"
        )
        assert max(added) <= RESPAWN_ALLOWANCE


def test_server_that_was_stopped_for_a_while_does_not_take_its_engine_for_dead(tmp_path: Path) -> None:
    config = CONFIG + "[engine]\nheartbeat_seconds = 2\n"
    with serving(tmp_path, config) as server, api_client(server.url) as client:
        job_id = submit(client, **(WORK | {"steps": 100}))
        wait_for(client, job_id, lambda job: job["progress"] > 0.01)
        engine = engine_of(server)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(3.0)
        server.process.send_signal(signal.SIGCONT)
        assert wait_for_end(client, job_id)["status"] == "completed"
        assert attempts(client, job_id) == [1]
        assert engine_of(server) == engine


def test_job_that_kills_the_engine_twice_fails_and_the_next_one_runs(tmp_path: Path) -> None:
    with serving(tmp_path, CONFIG) as server, api_client(server.url) as client:
        deadly = submit(client, **(WORK | {"steps": 100}))
        following = submit(client, steps=2)
        for attempt in (1, 2):
            with follow(server, deadly) as events:
                next(event for event in events if event["attempt"] == attempt and event["step"] > 0)
            engine_of(server).kill()
            # No death of a job keeps another from being taken.
            cancelled = submit(client, steps=2)
            assert client.get("/api/v1/health").json()["status"] == "healthy"
            client.delete(f"/api/v1/jobs/{cancelled}").raise_for_status()
        failed = wait_for_end(client, deadly)
        assert (failed["status"], failed["code"], failed["details"]) == ("failed", "ENGINE_CRASHED", {"attempts": 2})
        assert wait_for_end(client, following)["status"] == "completed"


@contextlib.contextmanager
def follow(server: Server, job_id: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The data of a job's events, as they come."""
    with httpx.stream("GET", f"{server.url}/api/v1/jobs/{job_id}/stream", timeout=DEADLINE_SECONDS) as answer:
        yield (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))


def test_stopped_engine_is_found_by_its_heartbeat(tmp_path: Path, full: bool) -> None:
    # The default is 10 s; 2 s is the least that can be set.
    heartbeat, config = (10.0, CONFIG) if full else (2.0, CONFIG + "[engine]\nheartbeat_seconds = 2\n")
    with serving(tmp_path, config) as server, api_client(server.url) as client:
        job_id = submit(client, **(WORK | {"steps": 100}))
        wait_for(client, job_id, lambda job: job["progress"] > 0)
        engine = engine_of(server)
        engine.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        until(lambda: said(server, "engine died: no sign of life"))
        found = time.monotonic() - stopped
        report(f"a stopped engine was found after {found:.1f} s")
        assert found <= heartbeat + 1.0
        assert not engine.is_running()
        assert wait_for_end(client, job_id)["status"] == "completed"


def test_engine_stopped_on_its_way_up_is_found_by_its_heartbeat_too(tmp_path: Path) -> None:
    with serving(tmp_path, CONFIG + "[engine]\nheartbeat_seconds = 2\n") as server, api_client(server.url) as client:
        engine = engine_of(server)
        # It sends heartbeats before its imports; the last one before the stop counts.
        until(lambda: engine.num_threads() > 1 or said(server, "is ready on"))
        time.sleep(0.2)
        engine.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        until(lambda: said(server, "engine died: no sign of life for 2 s"))
        assert time.monotonic() - stopped <= 4.0
        assert wait_for_end(client, submit(client))["status"] == "completed"


def test_engine_that_keeps_dying_at_its_start_makes_the_service_degraded_until_it_recovers(tmp_path: Path) -> None:
    with serving(tmp_path, CONFIG) as server, api_client(server.url) as client:
        waiting = submit(client, steps=1)
        stop = threading.Event()

        def keep_killing() -> None:
            while not stop.wait(0.02):
                for child in server.children():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()

        killer = threading.Thread(target=keep_killing)
        killer.start()
        try:
            until(lambda: client.get("/api/v1/health").json()["status"] == "degraded")
            refused = client.post("/api/v1/generate", json={"prompt": "x", "model": "demo"})
            assert (refused.status_code, refused.json()["code"]) == (503, "ENGINE_UNAVAILABLE")
            assert int(refused.headers["retry-after"]) > 0
            deaths = said(server, "engine died")
            time.sleep(1.0)
            # Delays of 0.5, 1, 2 s: it does not spin.
            assert said(server, "engine died") - deaths <= 3
        finally:
            stop.set()
            killer.join()
        until(lambda: client.get("/api/v1/health").json()["status"] == "healthy")
        # The job that waited was never inside a child that died: no attempt was lost.
        assert wait_for_end(client, waiting)["status"] == "completed"
        assert wait_for_end(client, submit(client))["status"] == "completed"

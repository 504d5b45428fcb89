"""SIGTERM and SIGINT: what counts as a second signal, and what it does."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mflux_api.cli import serve
from mflux_api.cli.exit_status import EXIT_INTERNAL
from mflux_api.cli.signals import StopSignals
from mflux_api.jobs.job import Job, Status
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support import scripted_server
from tests.support.api_jobs import submit, wait_for
from tests.support.server import api_client, clean_environment, serving

CONFIG = '[models]\ndefault = "demo"\n'


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Put back the handlers of the test process."""
    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.mark.parametrize(
    ("gap", "taken"), [(0.0, ["first"]), (0.9, ["first"]), (1.0, ["first", "second"]), (60.0, ["first", "second"])]
)
def test_second_signal_counts_after_a_second_and_once(
    monkeypatch: pytest.MonkeyPatch, gap: float, taken: list[str]
) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signal handlers need the main thread")
    now = 100.0
    monkeypatch.setattr("mflux_api.cli.signals.time.monotonic", lambda: now)
    seen: list[str] = []
    with StopSignals(lambda: seen.append("first"), lambda: seen.append("second")).installed():
        signal.raise_signal(signal.SIGTERM)
        now += gap
        signal.raise_signal(signal.SIGINT)
        assert seen == taken
        now += 60.0
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert seen == ["first", "second"]


def starting(folder: Path, **script: bool | str) -> "subprocess.Popen[str]":
    """Start a server that plays a script from its first moment on."""
    (folder / "config.toml").write_text(CONFIG, "utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", scripted_server.MODULE, "serve", "--host", "127.0.0.1", "--port", "0"],
        cwd=folder,
        env=clean_environment() | scripted_server.environ(**script),
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a mutex of zeros can be locked")
@pytest.mark.parametrize("moment", ["opening", "starting"])
def test_signal_is_heard_from_the_first_moment_also_while_the_disk_does_not_answer(tmp_path: Path, moment: str) -> None:
    with starting(tmp_path, blocked_store=moment) as process:
        assert process.stderr is not None
        assert any(line == "blocked\n" for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(serve.STUCK_SECONDS + 10) == EXIT_INTERNAL
        finally:
            process.kill()
        said = "the shutdown is stuck" if moment == "opening" else "'job_store' did not stop"
        assert said in process.stderr.read()


@pytest.mark.slow
def test_signal_before_the_server_listens_ends_it_with_status_0(tmp_path: Path) -> None:
    with starting(tmp_path, signal_at_start=True) as process:
        assert process.stderr is not None
        told = process.stderr.read()
        assert process.wait(20) == 0, told
    assert "listening on" not in told
    assert told.endswith("stopped\n")


@pytest.mark.slow
def test_two_signals_at_once_are_one_and_the_running_job_ends(tmp_path: Path) -> None:
    """As a terminal and a supervisor send them; two of one kind would be merged by the kernel."""
    environ = scripted_server.environ(step_seconds=0.02)
    with serving(tmp_path, CONFIG, environ, module=scripted_server.MODULE) as server, api_client(server.url) as client:
        job_id = submit(client, steps=40)
        wait_for(client, job_id, lambda job: job["progress"] > 0)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
    with SqliteRepository(tmp_path / "output" / DATABASE_NAME) as repository:
        kept = repository.get(job_id)
        assert isinstance(kept, Job)
        assert kept.status is Status.COMPLETED

"""The watchdog: silent while the end comes in time, and in no way held up by the limits it is given."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import psutil
import pytest

from mflux_api.cli import standard_error
from mflux_api.cli.watchdog import Watchdog
from tests.support import scripted_server
from tests.support.server import clean_environment

CODE = """
import sys, time
from mflux_api.cli import standard_error
from mflux_api.cli.watchdog import Watchdog
with Watchdog(70) as watchdog:
    watchdog.arm(60)
    watchdog.arm(float(sys.argv[1]))
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(("limit", "length", "status"), [("0.2", "30", 70), ("30", "0.2", 0)])
def test_block_that_outlasts_its_limit_ends_the_process_with_one_line(limit: str, length: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, limit, length],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == status
    assert done.stderr.count("\n") == (1 if status else 0)
    assert done.stderr.startswith("mflux-api: the shutdown is stuck") == bool(status)


def _broken_pipe() -> int:
    """The writing end of a pipe that has no reader."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@contextmanager
def _full_pipe() -> Iterator[int]:
    """The writing end of a pipe that holds all it can, and whose reader reads nothing."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)


@contextmanager
def _standard_error(kind: str) -> Iterator[int]:
    with _full_pipe() if kind == "full" else nullcontext(_broken_pipe()) as descriptor:
        yield descriptor
        os.close(descriptor)


@pytest.mark.parametrize("kind", ["broken", "full"])
def test_stuck_process_ends_although_standard_error_takes_nothing(kind: str) -> None:
    with _standard_error(kind) as stderr:
        process = subprocess.Popen([sys.executable, "-c", CODE, "0.2", "600"], env=clean_environment(), stderr=stderr)
        try:
            assert process.wait(20) == 70
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["broken", "full"])
def test_sigterm_ends_a_server_whose_standard_error_takes_nothing(tmp_path: Path, kind: str) -> None:
    """As in ``serve 2>&1 | tee log`` when tee is killed, or stopped."""
    (tmp_path / "config.toml").write_text('[models]\ndefault = "demo"\n[server]\nport = 0\n', "utf-8")
    with _standard_error(kind) as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", scripted_server.MODULE, "serve", "--host", "127.0.0.1", "--log-level", "debug"],
            cwd=tmp_path,
            env=clean_environment() | scripted_server.environ(),
            stderr=stderr,
        )
        try:
            _wait_until_it_listens(process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


def test_warning_of_python_itself_waits_for_no_reader_either() -> None:
    code = "import sys, warnings; from mflux_api.cli.standard_error import in_background\n"
    code += "with in_background():\n for n in range(3000): warnings.warn(f'{n}'); print('x' * 100, file=sys.stderr)"
    with _standard_error("full") as stderr:
        assert (
            subprocess.run([sys.executable, "-c", code], env=clean_environment(), stderr=stderr, timeout=20).returncode
            == 0
        )


def test_lines_that_were_not_read_in_time_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, read = threading.Event(), threading.Event()
    written: list[str] = []

    def write(text: str) -> None:
        begun.set()
        read.wait()
        written.append(text)

    monkeypatch.setattr(standard_error, "_write", write)
    monkeypatch.setattr(standard_error, "_END_SECONDS", 30.0)
    stream = standard_error.BackgroundStream()
    stream.write("first\n")
    begun.wait()
    for number in range(1500):
        stream.write(f"{number}\n")
    read.set()
    stream.drain()
    stream.write("last\n")
    stream.drain()
    lines = "".join(written).splitlines()
    assert lines[:1001] == ["first", *map(str, range(1000))]
    assert lines[1001:] == ["(standard error was not read: 500 lines are missing)", "last"]


def _wait_until_it_listens(process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not any(each.status == "LISTEN" for each in psutil.Process(process.pid).net_connections("tcp")):
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, "the server does not listen"
        time.sleep(0.02)


@pytest.mark.parametrize("seconds", [1e12, math.inf])
def test_infinite_limit_never_ends_the_process_and_the_thread_ends_with_the_block(seconds: float) -> None:
    with Watchdog(os.EX_SOFTWARE) as watchdog:
        watchdog.arm(seconds)
        assert any(thread.name == "watchdog" for thread in threading.enumerate())
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())

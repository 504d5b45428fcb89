"""No orphan: SIGKILL the server, whatever the engine is doing, and 2 s later there is no child."""

import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support.api_jobs import submit, wait_for, wait_for_end
from tests.support.report import report
from tests.support.server import api_client, engine_of, serving

pytestmark = pytest.mark.slow

CONFIG = '[models]\ndefault = "demo"\n'
SECONDS = 2.0
LONG = {"steps": 200, "width": 256, "height": 256}


@pytest.mark.parametrize(
    "moment", ["the child is starting", "it idles", "it loads or encodes", "it denoises", "it is stopped"]
)
def test_killed_server_leaves_no_child(tmp_path: Path, moment: str, full: bool) -> None:
    if not full and moment == "it loads or encodes":
        pytest.skip("only with --full: the moment is short")
    slowest = 0.0
    for _ in range(5 if full else 1):
        with serving(tmp_path, CONFIG) as server, api_client(server.url) as client:
            engine = engine_of(server)
            if moment == "it idles":
                wait_for_end(client, submit(client))
            elif moment == "it loads or encodes":
                job_id = submit(client, **LONG)
                wait_for(client, job_id, lambda job: job["stage"] in ("loading", "encoding"))
                until_it_works(engine)
            elif moment in ("it denoises", "it is stopped"):
                job_id = submit(client, **LONG)
                wait_for(client, job_id, lambda job: job["progress"] > 0)
            children = psutil.Process(server.process.pid).children(recursive=True)
            assert engine in children
            if moment == "it is stopped":
                engine.send_signal(signal.SIGSTOP)
                while not all_threads_stopped(engine):
                    time.sleep(0.005)
            server.process.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            while any(map(alive, children)):
                assert time.monotonic() < killed + SECONDS, "the engine outlived its server"
                time.sleep(0.005)
            slowest = max(slowest, time.monotonic() - killed)
            forget_jobs(tmp_path)
    report(f"{moment}: gone after at most {slowest * 1000:.0f} ms")


def until_it_works(engine: psutil.Process) -> None:
    """Wait until the child burns time on its main thread."""
    before = engine.cpu_times().user
    deadline = time.monotonic() + 10
    while engine.cpu_times().user < before + 0.1 and time.monotonic() < deadline:
        time.sleep(0.01)


def all_threads_stopped(process: psutil.Process) -> bool:
    """Whether the last thread has stopped, too: until then the system takes the process for one that runs."""
    threads = list(Path(f"/proc/{process.pid}/task").glob("*/stat"))
    if not threads:
        return process.status() == psutil.STATUS_STOPPED
    return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie is its new parent's business."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def forget_jobs(folder: Path) -> None:
    """The next server of this test begins without the long job of this one."""
    for file in (folder / "output").glob("mflux-api.sqlite3*"):
        file.unlink()

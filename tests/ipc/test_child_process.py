"""The end of a child process: every step of it has a bound."""

import sys

import pytest
import trio
from trio.testing import MockClock

from mflux_api.ipc.child_process import ChildProcess


async def test_killed_process_that_does_not_end_does_not_hold_up_the_service(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that waits for a dead network disk: not even SIGKILL ends that wait."""
    process = await ChildProcess.launch([sys.executable, "-c", "import time; time.sleep(600)"])
    child = ChildProcess(process)
    with monkeypatch.context() as patched:
        patched.setattr(process, "kill", lambda: None)
        patched.setattr(process, "terminate", lambda: None)
        patched.setattr(process, "wait", trio.sleep_forever)
        await child.aclose()
    assert caplog.messages == [f"child {process.pid}: it was killed and has not ended yet"]
    process.kill()
    await process.wait()

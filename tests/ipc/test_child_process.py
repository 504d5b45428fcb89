"""The end of a child process: every step of it has a bound."""

import sys

import pytest
import trio
from trio.testing import MockClock

from mflux_api.images.child.protocol import Ready
from mflux_api.ipc.child_process import ChildProcess
from mflux_api.ipc.frames import ProtocolError


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


async def test_text_that_is_not_ascii_is_refused_before_a_byte_is_sent() -> None:
    """Half-way it would leave the child with an unfinished frame."""
    child = ChildProcess(
        await ChildProcess.launch(
            [sys.executable, "-c", "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read() + b'.')"]
        )
    )
    with trio.fail_after(30), pytest.raises(ProtocolError, match="not ASCII"):
        await child.send(Ready(), ["plain", "ä"])
    await child._stdin.aclose()
    assert b"".join([bytes(data) async for data in child._stdout]) == b"."
    await child.aclose()

"""The end of a child process: every step of it has a bound."""

import fcntl
import sys
import tracemalloc

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.images.child.protocol import RESULT_TYPES, FileMade, Ready
from mflux_api.ipc import frames
from mflux_api.ipc.child_process import PIPE_SIZE, ChildProcess
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


class Made(ChildProcess):
    types = RESULT_TYPES


BLOBS = (b"", bytes(range(256)) * 3, b"x", b"")
STREAM = frames.encode(FileMade(), BLOBS) + frames.encode(Ready()) + frames.encode(FileMade(), BLOBS[:2])


@pytest.mark.parametrize("size", [1, 7, 300])
async def test_receive_that_is_cancelled_anywhere_loses_nothing_of_a_frame_with_blobs(size: int) -> None:
    # It echoes each piece of the stream before the next one is sent.
    child = Made(await ChildProcess.launch(["cat"]))
    assert isinstance(child._stdout, trio.lowlevel.FdStream)
    pipe, received = child._stdout.fileno(), []

    async def receive() -> None:
        while True:
            received.append(await child.receive_within(30))

    with trio.fail_after(30):
        for start in range(0, len(STREAM), size):
            await child._stdin.send_all(STREAM[start : start + size])
            await trio.lowlevel.wait_readable(pipe)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
    assert received == [(FileMade(), BLOBS), (Ready(), ()), (FileMade(), BLOBS[:2])]
    await child.aclose(force=True)


async def test_large_blob_is_handed_over_without_a_copy() -> None:
    """A copy of an image of 32 MP would hold up the loop for a tenth of a second."""
    blob = bytes(5_000_000)
    child = Made(await ChildProcess.launch(["cat"]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.send, FileMade(), [blob])
        with trio.fail_after(30):
            tracemalloc.start()
            frame, blobs = await child.receive_within(30)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert (frame, blobs) == (FileMade(), (blob,))
    assert peak < 1.7 * len(blob)
    await child.aclose(force=True)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a pipe's size is the system's")
async def test_pipes_to_and_from_a_child_hold_an_image() -> None:
    process = await ChildProcess.launch(["cat"])
    for pipe in (process.stdin, process.stdout):
        assert isinstance(pipe, trio.lowlevel.FdStream)
        assert fcntl.fcntl(pipe.fileno(), fcntl.F_GETPIPE_SZ) == PIPE_SIZE
    process.kill()
    await process.wait()

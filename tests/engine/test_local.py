"""Engine children as the service sees them: started, watched and ended. Stand-ins play the part of the worker."""

import os
import signal
import sys
from typing import Any

import attrs
import psutil
import pytest
import trio

from mflux_api.engine import protocol as p
from mflux_api.engine.interface import EngineDied
from mflux_api.engine.local import LocalEngine, LocalEngineOptions
from mflux_api.machine import DEVICES_VARIABLE
from tests.support.engine_child import death, running_engine
from tests.support.engine_contract import DEADLINE_SECONDS, RUN

pytestmark = pytest.mark.slow


def mx_has_gpu() -> bool:
    """Whether MLX could compute on a GPU here."""
    import mlx.core as mx

    return mx.is_available(mx.gpu)


PRELUDE = """
import os, signal, struct, sys, time
from mflux_api.engine import protocol as p
from mflux_api.ipc import frames
def say(frame, *blobs): os.write(1, frames.encode(frame, blobs))
def ready(): say(p.Ready(pid=os.getpid(), device="cpu", device_name="stand-in", precision="", blas="",
                         blas_fast=True, versions={}))
"""


def stand_in(code: str, **options: Any) -> LocalEngineOptions:
    """Return options for a child that runs that code in place of the worker."""
    return attrs.evolve(LocalEngineOptions(), command=(sys.executable, "-P", "-c", PRELUDE + code), **options)


async def start_error(options: LocalEngineOptions) -> str:
    """Return the reason why a child does not come up, after checking that no process is left of it."""
    reason = ""
    async with trio.open_nursery() as nursery:
        with trio.fail_after(DEADLINE_SECONDS):
            try:
                await LocalEngine.start(nursery, options)
            except EngineDied as died:
                reason = died.reason
    assert not psutil.Process().children()
    return reason


# --- the handshake -------------------------------------------------------------------------------------------------


async def test_child_silent_before_its_handshake_times_out() -> None:
    assert await start_error(stand_in("time.sleep(60)", start_timeout=0.5)) == "no handshake within 0.5 s"


async def test_child_that_cannot_serve_here_says_why_and_what_to_do() -> None:
    code = "say(p.NotReady(message='no luck here: set another')); sys.exit(1)"
    assert await start_error(stand_in(code)) == "no luck here: set another"


async def test_gpu_that_is_not_here_is_one_clear_error() -> None:
    if mx_has_gpu():
        pytest.skip("this machine has a GPU")
    reason = await start_error(LocalEngineOptions(devices="gpu"))
    assert reason.startswith("MLX has no GPU here")
    assert "engine.devices" in reason


async def test_environment_says_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICES_VARIABLE, "tpu")
    assert await start_error(LocalEngineOptions()) == "MFLUX_API_DEVICES is 'tpu': set it to auto, cpu or gpu"
    async with running_engine(LocalEngineOptions(devices="cpu")) as engine:
        assert (engine.info.device, engine.info.precision) == ("cpu", "float32")


async def test_last_line_of_a_child_that_does_not_come_up_is_its_reason_with_advice() -> None:
    code = "raise ImportError('/opt/mlx/libcuda.so.1: cannot open shared object file')"
    assert await start_error(stand_in(code)) == (
        "exited with status 1: ImportError: libcuda.so.1: cannot open shared object file; this is MLX's CUDA build on "
        "a machine without a working NVIDIA driver: install the driver, or MLX's CPU build (docs/install.md)"
    )


async def test_last_line_of_a_child_that_hangs_at_its_start_is_told() -> None:
    code = "print('waiting for the GPU', file=sys.stderr, flush=True); time.sleep(60)"
    assert await start_error(stand_in(code, start_timeout=1.0)) == "no handshake within 1 s: waiting for the GPU"


async def test_last_line_of_a_child_that_has_a_prompt_is_not_told() -> None:
    code = "ready(); sys.stdin.buffer.read(8); sys.exit('bad prompt: a secret garden')"
    async with running_engine(stand_in(code)) as engine:
        await engine.send(attrs.evolve(RUN, prompt="a secret garden"))
        assert await death(engine) == "exited with status 1"


async def test_heartbeats_alone_do_not_prolong_the_handshake() -> None:
    code = "while True: say(p.Heartbeat(active_bytes=0, peak_bytes=0)); time.sleep(0.05)"
    assert await start_error(stand_in(code, start_timeout=0.5)) == "no handshake within 0.5 s"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("sys.exit(3)", "exited with status 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("say(p.Unloaded())", "it did not begin with a handshake"),
        ("say(p.Shutdown())", "it sent a command"),
        ("os.write(1, b'Loading checkpoint shards: 100%')", "it sent a frame header of"),
        ("os.write(1, struct.pack('>I', 1 << 31))", "it sent a frame header of 2147483648 bytes"),
        ("os.write(1, struct.pack('>I', 3) + b'abc')", "it sent a frame that cannot be decoded"),
        (
            "os.write(1, frames.encode(p.Unloaded()).replace(b'Unloaded', b'Unknown!'))",
            "it sent a frame with an unknown tag",
        ),
    ],
)
async def test_child_that_does_not_come_up_is_named_and_reaped(code: str, reason: str) -> None:
    assert (await start_error(stand_in(code + "\ntime.sleep(0.2)"))).startswith(reason)


async def test_command_that_cannot_be_started_is_a_dead_engine() -> None:
    options = LocalEngineOptions(command=("/nowhere/python",))
    assert await start_error(options) == "it cannot be started (No such file or directory)"


async def test_cancelled_start_leaves_no_child() -> None:
    with trio.move_on_after(0.3) as scope:
        async with trio.open_nursery() as nursery:
            await LocalEngine.start(nursery, stand_in("time.sleep(60)"))
    assert scope.cancelled_caught
    assert not psutil.Process().children()


# --- life and death ------------------------------------------------------------------------------------------------


async def test_cancelled_receive_loses_no_byte() -> None:
    code = """
ready()
data = frames.encode(p.ImageDone(run_id=1, index=0, seed=1, width=64, height=64), [bytes(range(256)) * 48])
one = len(frames.encode(p.UnloadModel(model="demo")))
os.write(1, data[:3]); sys.stdin.buffer.read(one)
os.write(1, data[3:2000]); sys.stdin.buffer.read(one)
os.write(1, data[2000:])
time.sleep(60)
"""
    async with running_engine(stand_in(code)) as engine:
        for _ in range(2):
            with trio.move_on_after(0.1) as scope:
                await engine.receive()
            assert scope.cancelled_caught
            await engine.send(p.UnloadModel(model="demo"))
        with trio.fail_after(DEADLINE_SECONDS):
            received = await engine.receive()
    assert received.blobs == (bytes(range(256)) * 48,)


async def test_death_on_the_way_of_a_frame_is_named() -> None:
    code = "ready(); os.write(1, frames.encode(p.Unloaded(), [bytes(100)])[:50]); os.kill(os.getpid(), signal.SIGKILL)"
    async with running_engine(stand_in(code)) as engine:
        assert await death(engine) == "killed by SIGKILL"
        with pytest.raises(EngineDied, match="killed by SIGKILL"):
            await engine.send(p.UnloadModel(model="demo"))


async def test_silent_child_is_dead() -> None:
    async with running_engine(stand_in("ready(); time.sleep(60)", heartbeat_timeout=0.3)) as engine:
        assert await death(engine) == "no sign of life for 0.3 s"


@pytest.mark.parametrize(
    ("code", "signal_number"),
    [
        ("sys.stdin.buffer.read(); sys.exit(0)", 0),
        ("time.sleep(60)", -signal.SIGTERM),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(60)", -signal.SIGKILL),
    ],
    ids=["leaves when asked", "needs SIGTERM", "needs SIGKILL"],
)
async def test_child_is_ended_as_gently_as_it_allows(code: str, signal_number: int) -> None:
    # The third child says it twice: when it says it again its signal handler is in place.
    async with running_engine(stand_in(f"ready(); {code}")) as engine:
        if "SIG_IGN" in code:
            with trio.fail_after(DEADLINE_SECONDS):
                await engine.receive()
        with trio.fail_after(DEADLINE_SECONDS):
            await engine.aclose()
        assert engine._process.returncode == signal_number


async def test_cancelled_close_kills_and_reaps() -> None:
    async with running_engine(stand_in("ready(); time.sleep(60)")) as engine:
        with trio.CancelScope() as scope:
            scope.cancel()
            await engine.aclose()
        assert engine._process.returncode == -signal.SIGKILL


async def test_many_children_leave_no_descriptor_and_no_zombie() -> None:
    me = psutil.Process()
    async with running_engine(stand_in("ready(); time.sleep(60)")):
        pass
    before = me.num_fds()
    for _ in range(20):
        async with running_engine(stand_in("ready(); time.sleep(60)")) as engine:
            os.kill(engine.pid, signal.SIGKILL)
            assert await death(engine) == "killed by SIGKILL"
    assert me.num_fds() <= before
    assert not me.children()


SECRETS = ("MFLUX_API_KEYS", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD")


async def test_engine_child_inherits_no_keys_or_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "hidden-value")
    monkeypatch.setenv("MFLUX_API_DEVICES", "cpu")
    code = """
seen = [name for name, value in os.environ.items() if "hidden-value" in value]
say(p.NotReady(message=f"secrets: {seen}, devices: {os.environ['MFLUX_API_DEVICES']}"))
"""
    assert await start_error(stand_in(code)) == "secrets: [], devices: cpu"

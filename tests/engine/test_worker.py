"""The real worker process: when it ends, and what its libraries may do to it."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import psutil
import pytest
import trio

from mflux_api.engine import protocol as p
from mflux_api.engine.local import LocalEngineOptions
from mflux_api.ipc import frames
from mflux_api.storage.checkpoints import EMBEDDED
from mflux_api.storage.footprint import measure
from tests.support.engine_child import death, running_engine
from tests.support.engine_contract import RUN, load, rgb_images, run, until

pytestmark = pytest.mark.slow


@contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A worker whose pipes this test holds itself."""
    with subprocess.Popen(LocalEngineOptions().command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[bytes], kind: type[p.Event]) -> p.Frame:
    """Return the next frame of that kind; without a time limit, because the worker sends heartbeats."""
    assert process.stdout is not None
    while True:
        length = frames.header_length(process.stdout.read(frames.PREFIX_LENGTH))
        header = frames.decode_header(process.stdout.read(length), p.ENGINE_TYPES)
        process.stdout.read(sum(header.blob_lengths))
        if isinstance(header.frame, kind):
            return header.frame


def test_worker_leaves_at_end_of_file_also_while_it_imports() -> None:
    with worker() as process:
        assert process.stdin is not None
        # The first heartbeat comes from the control thread, which is started before the slow imports.
        read_until(process, p.Heartbeat)
        process.stdin.close()
        assert process.wait(timeout=1.5) == 0


def test_worker_leaves_at_end_of_file_in_the_middle_of_a_run() -> None:
    with worker() as process:
        assert process.stdin is not None
        read_until(process, p.Ready)
        process.stdin.write(frames.encode(p.LoadModel(model="demo", path=str(EMBEDDED))))
        process.stdin.write(frames.encode(attrs.evolve(RUN, steps=200)))
        process.stdin.flush()
        read_until(process, p.StepDone)
        process.stdin.close()
        assert process.wait(timeout=1.5) == 0


def test_worker_that_reads_an_invalid_frame_ends() -> None:
    with worker() as process:
        assert process.stdin is not None
        read_until(process, p.Heartbeat)
        process.stdin.write(b"\0\0\0\1\xff")
        process.stdin.flush()
        assert process.wait(timeout=5) == 1


async def test_killed_worker_is_found_at_once_and_named() -> None:
    async with running_engine() as engine:
        os.kill(engine.pid, signal.SIGKILL)
        with trio.fail_after(1.0):
            assert await death(engine) == "killed by SIGKILL"
    assert not psutil.Process().children()


async def test_worker_killed_by_a_signal_without_a_name_is_found_too() -> None:
    number = signal.SIGRTMIN + 3
    async with running_engine() as engine:
        os.kill(engine.pid, number)
        assert await death(engine) == f"killed by signal {number}"


async def test_what_memory_is_left_is_said_before_the_end_of_a_run() -> None:
    """The parent decides by it at once what to load next."""
    async with running_engine() as engine:
        assert engine.info.free_bytes is not None
        await load(engine, p.LoadModel(model="demo", path=str(EMBEDDED)))
        await engine.send(RUN)
        events = [(await engine.receive()).event]
        while not isinstance(events[-1], p.RunDone):
            events.append((await engine.receive()).event)
        assert isinstance(events[-2], p.Heartbeat)


async def test_load_tells_what_its_weights_take_and_nothing_of_what_is_not_read() -> None:
    command = p.LoadModel(model="demo", path=str(EMBEDDED))
    async with running_engine() as engine:
        unread = await load(engine, attrs.evolve(command, component_offload=True))
        whole = await load(engine, attrs.evolve(command, unpack=True))
        expected = measure(EMBEDDED, float_bytes=2 if engine.info.precision == "bfloat16" else 4)
    assert isinstance(unread, p.Loaded)
    assert isinstance(whole, p.Loaded)
    assert expected is not None
    assert (unread.weights_bytes, whole.weights_bytes) == (0, expected.whole)


async def test_low_ram_run_says_how_far_it_reads_each_component_and_goes_back_to_its_stage() -> None:
    async with running_engine() as engine:
        await load(engine, p.LoadModel(model="demo", path=str(EMBEDDED), component_offload=True))
        events = [frame.event for frame in await run(engine, attrs.evolve(RUN, low_ram=True, run_id=4))]
    words = [
        event.component if isinstance(event, p.LoadProgress) else event.stage
        for event in events
        if isinstance(event, p.LoadProgress | p.StageChanged)
    ]
    assert {event.run_id for event in events if isinstance(event, p.LoadProgress)} == {4}
    assert list(dict.fromkeys(itertools.pairwise(words))) == [
        ("encoding", "text_encoder"),
        ("text_encoder", "text_encoder"),
        ("text_encoder", "encoding"),
        ("encoding", "denoising"),
        ("denoising", "transformer"),
        ("transformer", "transformer"),
        ("transformer", "denoising"),
        ("denoising", "decoding"),
        ("decoding", "vae"),
        ("vae", "vae"),
        ("vae", "decoding"),
    ]


async def test_stopped_worker_is_found_by_its_silence_and_reaped() -> None:
    async with running_engine(LocalEngineOptions(heartbeat_timeout=2.0)) as engine:
        os.kill(engine.pid, signal.SIGSTOP)
        assert await death(engine) == "no sign of life for 2 s"
        with trio.fail_after(1.0):
            await engine.aclose(force=True)
    assert not psutil.Process().children()


INTRUDER = """
import builtins, os, subprocess, sys, socket
from mflux_api.engine import worker
from mflux_api.engine.worker import Worker

def connect(*_): raise SystemExit("the network")
socket.socket.connect = connect

def load(self, command, stock=Worker._load):
    print("Loading", "x" * 100_000, flush=True)
    os.write(1, b"raw")
    subprocess.run(["echo", "from a child of the child"], check=True)
    assert sys.stdin.read() == ""
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    stock(self, command)
Worker._load = load
worker.main()
"""


async def test_what_the_model_code_prints_and_reads_touches_no_frame_and_it_has_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    options = LocalEngineOptions(command=(sys.executable, "-P", "-c", INTRUDER))
    async with running_engine(options) as engine:
        await load(engine, p.LoadModel(model="demo", path=str(EMBEDDED)))
        await engine.send(RUN)
        done = await until(engine, p.RunDone, p.RunFailed)
    assert isinstance(done[-1].event, p.RunDone)
    if engine.info.device == "cpu":
        assert list((tmp_path / "tmp").iterdir()) == [], "it compiled something"


@pytest.mark.parametrize("bits", [3, pytest.param(6, marks=pytest.mark.thorough)])
async def test_embedded_checkpoint_is_quantized_too(tmp_path: Path, bits: p.Bits) -> None:
    async with running_engine() as engine:
        whole = p.LoadModel(model="demo", path=str(EMBEDDED))
        few = attrs.evolve(whole, model="few", bits=bits, entry=str(tmp_path / "quantized" / "few"))
        for command in (few, whole):
            assert isinstance(await load(engine, command), p.Loaded)
        generated = [rgb_images(await run(engine, attrs.evolve(RUN, model=model))) for model in ("demo", "few")]
    assert len(generated[0]) == len(generated[1]) == 1
    assert generated[0] != generated[1]


async def test_image_that_is_not_a_number_is_an_error_and_not_a_black_image(tmp_path: Path, tiny_folder: Path) -> None:
    import mlx.core as mx

    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    file = next((folder / "transformer").glob("*.safetensors"))
    weights = mx.load(str(file))
    assert isinstance(weights, dict)
    # Read before their file is written over.
    mx.eval(weights)
    weights["x_embedder.weight"][0, 0] = float("nan")
    mx.save_safetensors(str(file), weights)
    async with running_engine() as engine:
        assert isinstance(await load(engine, p.LoadModel(model="broken", path=str(folder))), p.Loaded)
        await engine.send(attrs.evolve(RUN, model="broken"))
        seen = [received.event for received in await until(engine, p.RunDone, p.RunFailed)]
    assert not [event for event in seen if isinstance(event, p.ImageDone | p.StepDone)]
    failed = seen[-1]
    assert isinstance(failed, p.RunFailed)
    assert failed.code == "GENERATION_FAILED"
    assert "'broken'" in failed.message
    assert engine.info.precision in failed.message
    assert "engine.devices" in failed.message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008)"), "OOM_ERROR"),
        (RuntimeError("[malloc] Unable to allocate 1099511627776 bytes."), "OOM_ERROR"),
        (RuntimeError("[metal::malloc] Resource limit (499000) exceeded."), "OOM_ERROR"),
        (RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"), "OOM_ERROR"),
        (RuntimeError("std::bad_alloc"), "OOM_ERROR"),
        (MemoryError(), "OOM_ERROR"),
        (RuntimeError("[METAL] Command buffer execution failed: GPU Timeout"), "GENERATION_FAILED"),
        (ValueError("/a/path"), "GENERATION_FAILED"),
    ],
)
def test_each_out_of_memory_error_of_mlx_is_recognised(error: Exception, code: str) -> None:
    from mflux_api.engine.worker import _classify

    found, message = _classify(error, "The engine failed while generating")
    assert found == code
    assert "/a/path" not in message


PARENT = """
import sys, trio
from pathlib import Path
from mflux_api import Settings, open_service
from mflux_api.config import GenerationSettings, ModelSettings

async def main(folder):
    settings = Settings(models=ModelSettings(cache_dir=folder / "models"),
                        generation=GenerationSettings(output_dir=folder / "output"))
    async with open_service(settings) as service:
        while (state := (await service._gateway.engines())[0].state) is None or state.info is None:
            await trio.sleep(0.05)
        print(state.info.pid, flush=True)
        await trio.sleep_forever()

trio.run(main, Path(sys.argv[1]))
"""


def test_killed_service_leaves_no_engine_behind(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-P", "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, alive = psutil.wait_procs([child], timeout=2.0)
    assert not alive


async def test_previews_are_made_from_the_moment_on_that_someone_wants_them() -> None:
    async with running_engine() as engine:
        await load(engine, p.LoadModel(model="demo", path=str(EMBEDDED)))
        await engine.send(attrs.evolve(RUN, steps=200, run_id=6))
        event = (await engine.receive()).event
        while not (isinstance(event, p.StepDone) and event.step == 3):
            assert not isinstance(event, p.PreviewMade)
            event = (await engine.receive()).event
        await engine.send(p.ShowPreviews(run_id=6))
        while not isinstance(event, p.PreviewMade):
            assert not isinstance(event, p.RunDone)
            event = (await engine.receive()).event
        assert event.step >= 3
        await engine.send(p.Cancel(run_id=6))
        await until(engine, p.RunStopped)


def test_what_was_imported_is_not_collected_after_every_run() -> None:
    """A run's end waits for the collector, which would look at 100,000 objects each time."""
    code = (
        "import gc, sys\nfrom mflux_api.engine import worker\n"
        "worker.Worker.serve = lambda self: sys.exit(gc.get_freeze_count() < 10 * len(gc.get_objects()))\n"
        "worker.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, "cpu"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        read_until(process, p.Ready)
        process.communicate(timeout=60)
    assert process.returncode == 0

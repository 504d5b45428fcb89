"""What the engine child says while it reads: how far it is, and that it stops when that is not wanted any more."""

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from mflux_api.engine import protocol as p
from mflux_api.engine import reporting, worker
from mflux_api.engine.device import Device
from mflux_api.engine.lora.applying import Lora, LoraError
from mflux_api.engine.reporting import Reporter
from mflux_api.engine.runs import pass_kind
from mflux_api.engine.sampling.passes import PipelineRequest, StageEvent, Stopped
from mflux_api.engine.sampling.pipeline import Pipeline
from mflux_api.engine.weights.components import Components, load_components
from mflux_api.engine.weights.quantized_cache import load_quantized
from tests.support.adapter_files import peft
from tests.support.checkpoint_shapes import TINY
from tests.support.engine_contract import RUN
from tests.support.pipeline_runs import generate

Told = list[tuple[str, int, int]]
DeviceKind = Literal["cpu", "metal", "cuda"]
STAGES: tuple[p.Stage, ...] = ("encoding", "denoising", "decoding")


class Pipe:
    def __init__(self) -> None:
        self.sent: list[p.Event] = []

    def write(self, event: p.Event, blobs: tuple[bytes, ...] = ()) -> None:
        self.sent.append(event)


class Control:
    def __init__(self) -> None:
        self.cancelled: set[int] = set()
        self.load_cancelled = False
        self.work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.memory = (0, 0)

    def beat(self) -> None:
        pass


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> tuple[Reporter, Pipe, Control, Callable[[float], None]]:
    """A reporter, what it sends, what it is told, and a way to let time pass."""
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pipe, control = Pipe(), Control()
    return Reporter(pipe, control), pipe, control, sleep  # type: ignore[arg-type]


def total_of(told: Told) -> int:
    (total,) = {total for _, _, total in told}
    return total


def test_load_is_told_by_the_bytes_of_all_components_together(tiny_folder: Path) -> None:
    told: Told = []
    components = load_components(tiny_folder, report=lambda *word: told.append(word))
    files = sum(file.stat().st_size for file in tiny_folder.rglob("*.safetensors"))
    assert told[0][1] == 0
    assert told[-1][1] == total_of(told)
    assert 0.5 * files < total_of(told) <= files
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert {component for component, _, _ in told} == {"text_encoder", "transformer", "vae"}
    assert len(told) > 50, "tensor by tensor"
    assert components.resident == {"text_encoder", "transformer", "vae"}


def test_component_that_is_read_again_is_told_alone(tiny_folder: Path) -> None:
    told: Told = []
    components = load_components(tiny_folder, component_offload=True, report=lambda *word: told.append(word))
    assert told == []
    for _ in range(2):
        assert components.vae is not None
        assert {component for component, _, _ in told} == {"vae"}
        assert (told[0][1], told[-1][1]) == (0, total_of(told))
        told.clear()
        components.drop("vae")


def test_reading_that_is_stopped_leaves_components_that_can_be_read(tiny_folder: Path) -> None:
    def stop(component: str, done: int, total: int) -> None:
        if component == "transformer" and done > total // 2 and not stopped:
            stopped.append(True)
            raise Stopped

    stopped: list[bool] = []
    components = load_components(tiny_folder, component_offload=True, report=stop)
    with pytest.raises(Stopped):
        assert components.transformer is None
    assert components.resident == set()
    components.load_all()
    assert components.resident == {"text_encoder", "transformer", "vae"}


def test_quantizing_load_says_throughout_that_it_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    told: Told = []
    load_quantized(tiny_folder, 4, tmp_path / "q", report=lambda *word: told.append(word))
    assert {"text_encoder", "transformer", "vae", "saving", "checksums"} <= {component for component, _, _ in told}
    told.clear()
    load_quantized(tiny_folder, 4, tmp_path / "q", report=lambda *word: told.append(word))
    assert told[0][0] == "checksums"


def test_quantizing_load_can_be_stopped_anywhere_and_leaves_nothing_half_made(
    tiny_folder: Path, tmp_path: Path
) -> None:
    for phase in ("transformer", "saving", "checksums"):

        def stop(component: str, done: int, total: int, phase: str = phase) -> None:
            if component == phase:
                raise Stopped

        with pytest.raises(Stopped):
            load_quantized(tiny_folder, 4, tmp_path / "q", report=stop)
        assert [path.name for path in tmp_path.iterdir()] == [".q.lock"]


def test_load_that_waits_for_another_process_says_so_and_can_be_stopped(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: Any) -> None:
        raise BlockingIOError

    monkeypatch.setattr("fcntl.flock", busy)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    told: Told = []

    def stop(*word: Any) -> None:
        told.append(word)
        if len(told) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        load_quantized(tiny_folder, 4, tmp_path / "q", report=stop)
    assert told == [("waiting", 0, 0)] * 3


def test_reader_that_is_quick_tells_its_begin_and_its_end(
    child: tuple[Reporter, Pipe, Control, Callable[[float], None]],
) -> None:
    reporter, pipe, _, sleep = child
    reporter.begin()
    for done in range(101):
        reporter.read("vae", done, 100)
        sleep(0.02)
    sent = [event.bytes_done for event in pipe.sent if isinstance(event, p.LoadProgress)]
    assert (sent[0], sent[-1]) == (0, 100)
    assert 4 <= len(sent) <= 7


def test_run_that_has_read_a_component_goes_back_to_its_stage(
    child: tuple[Reporter, Pipe, Control, Callable[[float], None]],
) -> None:
    reporter, pipe, _, _ = child
    reporter.begin((7,))
    reporter.stage = "denoising"
    reporter.read("transformer", 0, 5)
    reporter.read("transformer", 5, 5)
    assert pipe.sent == [
        p.LoadProgress(component="transformer", bytes_done=0, bytes_total=5, run_id=7),
        p.LoadProgress(component="transformer", bytes_done=5, bytes_total=5, run_id=7),
        p.StageChanged(run_id=7, stage="denoising"),
    ]


def test_reading_stops_for_the_run_or_the_load_that_was_cancelled_and_for_no_other(
    child: tuple[Reporter, Pipe, Control, Callable[[float], None]],
) -> None:
    reporter, _, control, _ = child
    control.cancelled.add(7)
    reporter.begin()
    reporter.read("vae", 0, 5)
    reporter.begin((8,))
    reporter.read("vae", 0, 5)
    reporter.begin((7,))
    with pytest.raises(Stopped):
        reporter.read("vae", 0, 5)
    control.load_cancelled = True
    reporter.begin((8,))
    reporter.read("vae", 0, 5)
    reporter.begin()
    with pytest.raises(Stopped):
        reporter.read("vae", 0, 5)


def test_long_stage_says_that_it_goes_on(child: tuple[Reporter, Pipe, Control, Callable[[float], None]]) -> None:
    reporter, pipe, _, sleep = child
    reporter.begin((7,))
    for _ in range(100):
        assert not reporter.should_stop()
        sleep(0.2)
    assert pipe.sent == [p.StillRunning(run_id=7)] * 3


@pytest.mark.parametrize("busy", [True, False])
def test_compiler_is_believed_while_it_takes_time_from_the_cpu(busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In real time: threads have no other."""
    monkeypatch.setattr(reporting, "STILL_RUNNING_SECONDS", 0.02)
    used = [0.0]

    def cpu_seconds() -> float:
        used[0] += 0.02 if busy else 0.0001
        looked.release()
        return used[0]

    looked = threading.Semaphore(0)
    monkeypatch.setattr(reporting, "_cpu_seconds", cpu_seconds)
    pipe = Pipe()
    reporter = Reporter(pipe, Control())  # type: ignore[arg-type]
    reporter.begin((7,))
    with reporter.compiling():
        for _ in range(5):
            assert looked.acquire(timeout=10)
    assert (p.StillRunning(run_id=7) in pipe.sent) is busy


def test_compiler_is_not_believed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "STILL_RUNNING_SECONDS", 0.01)
    monkeypatch.setattr(reporting, "COMPILING_SECONDS", 0.0)
    monkeypatch.setattr(reporting, "_cpu_seconds", iter(range(10_000)).__next__)
    pipe = Pipe()
    reporter = Reporter(pipe, Control())  # type: ignore[arg-type]
    reporter.begin((7,))
    reporter._watch_cpu(7, threading.Event())
    assert pipe.sent == []


class Child(worker.Worker):
    """A worker on a device that compiles."""

    def __init__(self, pipe: Pipe, kind: DeviceKind = "cuda") -> None:
        super().__init__(pipe, Control(), Device(kind=kind, name="a device"))  # type: ignore[arg-type]

    def stages(self, kind: tuple[object, ...]) -> list[str]:
        events = self._announced(kind, iter([StageEvent("encoding"), StageEvent("denoising"), StageEvent("decoding")]))
        return [event.stage for event in events if isinstance(event, StageEvent)]


def test_first_pass_of_a_kind_on_a_gpu_is_said_to_compile_in_each_stage_and_no_other() -> None:
    child = Child(Pipe())
    child._reporter.begin((1,))
    kind = pass_kind("demo", PipelineRequest("a house", seeds=(1,), width=64, height=64, steps=2))
    assert child.stages(kind) == ["encoding", "compiling", "denoising", "compiling", "decoding", "compiling"]
    same = pass_kind("demo", PipelineRequest("a lake", seeds=(9,), width=64, height=64, steps=8))
    assert child.stages(same) == ["encoding", "denoising", "decoding"]
    other = pass_kind("demo", PipelineRequest("a lake", seeds=(9, 10), width=64, height=64, steps=8))
    assert "compiling" in child.stages(other)
    # Kernels are of the process: it has them when the model comes back.
    child._unload("demo")
    assert "compiling" not in child.stages(kind)


def test_stage_is_said_to_compile_before_its_work_begins() -> None:
    """The first thing that is compiled may be the text encoder's or the decoder's."""
    log: list[str] = []

    def events() -> Iterator[StageEvent]:
        for stage in STAGES:
            yield StageEvent(stage)
            log.append(f"{stage} begins")

    child = Child(Pipe())
    child._reporter.begin((1,))
    for event in child._announced(("demo",), events()):
        assert isinstance(event, StageEvent)
        log.append(event.stage)
    assert log == [word for stage in STAGES for word in (stage, "compiling", f"{stage} begins")]


def test_pass_that_was_stopped_has_not_compiled_everything_and_the_next_one_says_so_again() -> None:
    child = Child(Pipe())
    child._reporter.begin((1,))
    events = child._announced(("demo",), iter([StageEvent("encoding"), StageEvent("denoising")]))
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert "compiling" in child.stages(("demo",))


@pytest.mark.parametrize("kind", ["cpu", "metal", "cuda"])
def test_only_gpus_are_said_to_compile(kind: DeviceKind) -> None:
    child = Child(Pipe(), kind)
    child._reporter.begin((1,))
    assert ("compiling" in child.stages(("demo",))) is (kind != "cpu")


@pytest.mark.parametrize(
    ("kind", "end", "at_once"),
    [
        ("cuda", p.RunDone(run_id=1, encode_seconds=0, denoise_seconds=0, decode_seconds=0), False),
        ("cuda", p.RunFailed(run_id=1, code="OOM_ERROR", message="Insufficient memory"), True),
        ("metal", p.RunDone(run_id=1, encode_seconds=0, denoise_seconds=0, decode_seconds=0), True),
    ],
)
def test_cuda_child_cleans_up_between_runs_only_where_there_is_time(
    kind: Any, end: Any, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, cleaned = Control(), list[str]()
    command = (p.UnloadModel(model="demo"), ())
    run = (RUN, ())

    def release() -> None:
        cleaned.append("cleaned")
        # What an idle child waits for comes after that.
        control.work.put(command)

    monkeypatch.setattr("mflux_api.engine.device.release", release)
    monkeypatch.setattr(worker.Worker, "_measure", lambda self: None)
    child = worker.Worker(Pipe(), control, Device(kind=kind, name="a GPU"))  # type: ignore[arg-type]
    child._rest([end])
    assert bool(cleaned) is at_once
    if at_once:
        return
    control.work.put(run)
    assert child._next_command() == run, "the next run did not wait for it"
    assert cleaned == []
    assert child._next_command() == command
    assert cleaned == ["cleaned"]


def test_run_says_which_of_its_loras_it_reads_and_when_all_are_read(
    child: tuple[Reporter, Pipe, Control, Callable[[float], None]], tiny: Components, device: Device, tmp_path: Path
) -> None:
    """By that the service knows which file a death belongs to."""
    reporter, pipe, _, _ = child
    files = [peft(tmp_path / f"{seed}.safetensors", TINY, seed) for seed in (1, 2)]
    loras = tuple(Lora(file) for file in files)
    request = PipelineRequest(prompt="a red cat", seeds=(3,), width=64, height=48, steps=1, loras=loras)
    pipeline = Pipeline(tiny, device, reading_lora=reporter.reading_lora)
    reporter.begin((4,))
    # The second run has them ready, and reads nothing.
    for _ in range(2):
        generate(pipeline, request)
    assert pipe.sent == [p.ReadingLora(run_id=4, index=index) for index in (0, 1, None)]


def test_lora_that_cannot_be_read_is_the_last_that_is_said_to_be_read(
    child: tuple[Reporter, Pipe, Control, Callable[[float], None]], tiny: Components, device: Device, tmp_path: Path
) -> None:
    reporter, pipe, _, _ = child
    (tmp_path / "b.safetensors").write_bytes(b"broken")
    loras = (Lora(peft(tmp_path / "a.safetensors", TINY)), Lora(tmp_path / "b.safetensors"))
    request = PipelineRequest(prompt="a red cat", seeds=(3,), width=64, height=48, steps=1, loras=loras)
    reporter.begin((4,))
    with pytest.raises(LoraError, match=r"b\.safetensors"):
        generate(Pipeline(tiny, device, reading_lora=reporter.reading_lora), request)
    assert pipe.sent == [p.ReadingLora(run_id=4, index=index) for index in (0, 1)]

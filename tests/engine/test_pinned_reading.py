"""Reading through pinned memory on a CPU, with plain memory and a copy in Python in the places of CUDA's."""

import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mflux_api.catalog.files import COMPONENTS
from mflux_api.engine.checkpoint import CheckpointError, read_tensors
from mflux_api.engine.device import Device
from mflux_api.engine.kernels import pinned_reading
from mflux_api.engine.kernels.pinned_reading import read_pinned
from mflux_api.engine.stored_tensors import StoredTensor
from mflux_api.engine.weights.components import Components, load_components
from mflux_api.engine.weights.parameters import named_arrays

pytestmark = pytest.mark.usefixtures("device")

SLOT = 1 << 10
FILES = ("one.safetensors", "other.safetensors")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done with the memory, in its order: small slots, so that most tensors need several."""
    done: list[str] = []

    @contextmanager
    def plain(size: int) -> Iterator[int]:
        buffer = ctypes.create_string_buffer(size)
        done.append("allocate")
        try:
            yield ctypes.addressof(buffer)
        finally:
            done.append("free")

    def copying(*_: object) -> Callable[..., list[mx.array]]:
        def copy(*, inputs: list[mx.array], output_shapes: list[tuple[int]], **_: Any) -> list[mx.array]:
            address, size = np.array(inputs[0])[0].tolist()
            assert output_shapes == [(size,)]
            done.append("copy")
            return [mx.array(np.frombuffer(ctypes.string_at(address, size), np.uint8))]

        return copy

    monkeypatch.setattr(pinned_reading, "pinned", plain)
    monkeypatch.setattr(pinned_reading, "kernel", copying)
    monkeypatch.setattr(pinned_reading, "SLOT_BYTES", SLOT)
    monkeypatch.setattr(pinned_reading, "SLOTS", 3)
    return done


@pytest.fixture
def stored(tmp_path: Path) -> deque[StoredTensor]:
    """Tensors of two files, of all sizes around that of a slot, in another order than in the files."""
    counts = (1, 3, 0, SLOT // 4, SLOT // 4 + 1, SLOT, 7 * SLOT + 5, 2)
    for seed, name in enumerate(FILES):
        mx.random.seed(seed)
        arrays: dict[str, mx.array] = {f"{count}": mx.random.normal((count,)) for count in counts if count}
        arrays |= {
            "bfloat16": mx.random.normal((37, 129)).astype(mx.bfloat16),
            "float16": mx.random.normal((5, 2, 3, 3)).astype(mx.float16),
            "uint32": mx.random.randint(0, 1 << 30, (9, 400)).astype(mx.uint32),
            "number": mx.array(2.5),
        }
        mx.save_safetensors(str(tmp_path / name), arrays)
    files = [read_tensors(tmp_path, name) for name in FILES]
    return deque(file[key] for key in sorted(files[0], reverse=True) for file in files)


def same(one: mx.array, other: mx.array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool(mx.array_equal(one, other).item())


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pinned-reading")]


def test_every_tensor_has_the_bits_of_the_file_and_no_thread_is_left(
    memory: list[str], stored: deque[StoredTensor]
) -> None:
    expected = [tensor.lazy for tensor in stored]
    read = list(read_pinned(stored))
    assert len(read) == len(expected)
    assert all(same(one, other) for one, other in zip(read, expected, strict=True))
    assert memory.count("copy") > 3 * len(expected)
    assert (memory.count("allocate"), memory[-1]) == (1, "free")
    assert not stored
    assert not readers()


def test_reading_that_is_given_up_ends_its_threads_before_the_memory_goes(
    memory: list[str], stored: deque[StoredTensor]
) -> None:
    with closing(read_pinned(stored)) as reading:
        next(reading)
        assert memory[-1] == "copy"
    assert memory[-1] == "free"
    assert not readers()


@pytest.mark.parametrize("lacking", ["the same file", "pinned", "kernel"])
def test_what_cannot_be_read_so_is_read_by_mlx(
    memory: list[str],
    stored: deque[StoredTensor],
    tmp_path: Path,
    lacking: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> Any:
        raise OSError("none") if lacking == "pinned" else RuntimeError("it cannot be compiled")

    if lacking == "the same file":
        os.utime(tmp_path / FILES[1], ns=(1, 1))
    else:
        monkeypatch.setattr(pinned_reading, lacking, refuse)
    expected = [tensor.lazy for tensor in stored]
    read = list(read_pinned(stored))
    assert all(one is other for one, other in zip(read, expected, strict=True))
    assert "copy" not in memory
    assert str(tmp_path) not in capsys.readouterr().err
    assert not readers()


def test_failure_on_the_way_loses_no_tensor(
    memory: list[str], stored: deque[StoredTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, fill, left = [tensor.lazy for tensor in stored], pinned_reading._fill, [20]

    def sometimes(chunk: Any, target: memoryview) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the disk is gone")
        fill(chunk, target)

    monkeypatch.setattr(pinned_reading, "_fill", sometimes)
    read = list(read_pinned(stored))
    assert "copy" in memory
    assert all(same(one, other) for one, other in zip(read, expected, strict=True))


def test_want_of_memory_stays_what_it_is(
    memory: list[str], stored: deque[StoredTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Callable[..., list[mx.array]]:
        raise RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory")

    monkeypatch.setattr(pinned_reading, "kernel", refuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(read_pinned(stored))


def test_components_have_the_same_bits_and_the_same_reports(
    memory: list[str], tiny_folder: Path, device: Device
) -> None:
    def load(reader: dict[str, Any]) -> tuple[Components, list[tuple[str, int, int]]]:
        reports: list[tuple[str, int, int]] = []
        components = load_components(tiny_folder, report=lambda *report: reports.append(report), **reader)
        return components, reports

    by_mlx, expected_reports = load({})
    pinned, reports = load({"tensor_reader": read_pinned})
    assert reports == expected_reports
    assert memory.count("allocate") == 3
    for name in COMPONENTS:
        arrays = dict(named_arrays(getattr(by_mlx, name)))
        assert all(same(array, arrays[key]) for key, array in named_arrays(getattr(pinned, name)))


def test_load_that_is_stopped_between_two_tensors_leaves_no_thread(
    memory: list[str], tiny_folder: Path, device: Device
) -> None:
    class StopError(Exception):
        pass

    def report(component: str, done: int, total: int) -> None:
        if done > total // 2:
            raise StopError

    with pytest.raises(StopError):
        load_components(tiny_folder, report=report, tensor_reader=read_pinned)
    assert memory[-1] == "free"
    assert not readers()


def test_reader_that_fails_is_a_checkpoint_that_cannot_be_read(tiny_folder: Path, device: Device) -> None:
    def fail(tensors: deque[StoredTensor]) -> Generator[mx.array, None, None]:
        yield tensors.popleft().lazy
        raise OSError("the disk is gone")

    with pytest.raises(CheckpointError, match="cannot be read from disk"):
        load_components(tiny_folder, tensor_reader=fail)

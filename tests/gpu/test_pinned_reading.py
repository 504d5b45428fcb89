"""Reading through pinned memory on CUDA: the bits of the file, whatever the sizes, and no memory or thread left."""

import threading
from collections import deque
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import pytest

from mflux_api.engine.checkpoint import read_tensors
from mflux_api.engine.demo.random_checkpoint import write_random_checkpoint
from mflux_api.engine.device import detect_device, select
from mflux_api.engine.kernels.pinned_reading import SLOT_BYTES, SLOTS, read_pinned
from mflux_api.engine.stored_tensors import StoredTensor
from mflux_api.engine.weights.components import load_components
from mflux_api.engine.weights.parameters import named_arrays


@pytest.fixture(autouse=True)
def _cuda() -> None:
    if detect_device().kind != "cuda":
        pytest.skip("pinned memory is CUDA's")


@pytest.fixture
def stored(tmp_path: Path) -> deque[StoredTensor]:
    """More tensors than there are slots, of sizes around 16 bytes, a block of threads and a slot."""
    sizes = (1, 2, 15, 16, 17, 255, 4096, 16384, 16385, SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 1, 3 * SLOT_BYTES + 7)
    arrays = {f"bytes.{size}": mx.random.randint(0, 256, (size,)).astype(mx.uint8) for size in sizes}
    arrays |= {f"floats.{side}": mx.random.normal((side, 3072)).astype(mx.bfloat16) for side in range(1, 6000, 700)}
    arrays |= {f"few.{number}": mx.random.normal((number, 3)) for number in range(1, 3 * SLOTS)}
    mx.save_safetensors(str(tmp_path / "a.safetensors"), arrays)
    return deque(read_tensors(tmp_path, "a.safetensors").values())


def same(one: mx.array, other: mx.array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool(mx.array_equal(one, other).item())


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pinned-reading")]


def test_every_tensor_has_the_bits_of_the_file(stored: deque[StoredTensor], capsys: pytest.CaptureFixture[str]) -> None:
    expected = [tensor.lazy for tensor in stored]
    for one, other in zip(read_pinned(stored), expected, strict=True):
        assert same(one, other)
    assert capsys.readouterr().err == "", "MLX has read them"
    assert readers() == []


def test_reading_can_be_given_up_at_any_tensor(stored: deque[StoredTensor]) -> None:
    for count in range(1, len(stored), 5):
        again = deque(stored)
        with closing(read_pinned(again)) as reading:
            for expected in [tensor.lazy for tensor in stored][:count]:
                assert same(next(reading), expected)
        assert readers() == []


def test_components_have_the_bits_that_mlx_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select("gpu")
    folder = write_random_checkpoint(tmp_path / "model")
    by_mlx = load_components(folder)
    pinned = load_components(folder, tensor_reader=read_pinned)
    for module, other in zip(pinned._modules.values(), by_mlx._modules.values(), strict=True):
        arrays = dict(named_arrays(other))
        assert all(same(array, arrays[name]) for name, array in named_arrays(module))
    assert "read by MLX" not in capsys.readouterr().err

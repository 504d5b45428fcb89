"""Copies of arrays through pinned memory: the same bytes, made in turn with what is computed."""

import gc

import mlx.core as mx
import numpy as np
import pytest

from mflux_api.engine.device import detect_device
from mflux_api.engine.kernels.host_copies import HostCopies


@pytest.fixture(autouse=True)
def _cuda() -> None:
    if detect_device().kind != "cuda":
        pytest.skip("pinned memory is CUDA's")


@pytest.mark.parametrize("count", [1, 15, 16, 17, 4096, 1024 * 1024 * 3, 1024 * 1024 * 3 + 5])
@pytest.mark.parametrize("kind", [mx.uint8, mx.float32])
def test_copies_have_the_arrays_bytes(count: int, kind: mx.Dtype) -> None:
    array = (mx.random.uniform(shape=(count,)) * 255).astype(kind)
    copy = HostCopies().copy(array)
    assert copy._place is not None, "it went through pinned memory"
    assert np.array_equal(copy.numpy(), np.array(array))


def test_a_view_and_a_transposed_array_are_copied_as_they_are_seen() -> None:
    array = (mx.random.uniform(shape=(33, 65, 3)) * 255).astype(mx.uint8)
    for seen in (array[1:, 3:], array.transpose(1, 0, 2), array[:, :, 1]):
        assert np.array_equal(HostCopies().copy(seen).numpy(), np.array(seen))


def test_places_are_used_again_and_a_copy_that_is_never_read_gives_its_place_back() -> None:
    copies = HostCopies()
    arrays = [mx.full((100,), number, dtype=mx.uint8) for number in range(4)]
    queued = [copies.copy(array) for array in arrays]
    mx.async_eval(*(each.pending for each in queued))
    del queued[1]
    gc.collect()
    assert [int(each.numpy()[0]) for each in queued] == [0, 2, 3]
    again = [copies.copy(array) for array in arrays]
    assert [int(each.numpy()[0]) for each in again] == [0, 1, 2, 3]
    assert len(next(iter(copies._free.values()))) == 4


def test_the_memory_ends_with_the_copies() -> None:
    copies = HostCopies()
    copy = copies.copy(mx.ones((1024,)) * 2)
    mx.async_eval(copy.pending)
    del copies, copy
    gc.collect()
    assert (mx.ones((4,)) * 3).sum().item() == 12

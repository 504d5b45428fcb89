"""Copies of a device's arrays in the host's memory, made in turn with what the device computes.

numpy's copy of an array on CUDA waits for everything that is queued, and the device has nothing to do meanwhile: the
previews of 4 steps cost 6 ms at 512 x 512 and 9 at 1024 x 1024 on an H200. Here a kernel, queued like any other, writes
into pinned memory, and they cost 2 to 3. Nothing is queued behind a finished image: it comes by numpy as fast.
"""

import ctypes
import weakref
from collections import defaultdict, deque
from contextlib import ExitStack

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mflux_api.engine.kernels.cuda_kernels import BLOCK, kernel
from mflux_api.engine.kernels.pinned_memory import pinned

_SMALLEST_BYTES = 1 << 16
_BYTES_OF_THREAD = 16


class HostCopy:
    """One copy, which is made once it is evaluated."""

    def __init__(self, array: mx.array, pending: mx.array | None = None, place: "_Place | None" = None) -> None:
        """Take the array and, where it goes through pinned memory, what is evaluated for that and where it comes."""
        self._array = array
        self._place = place
        self.pending = array if pending is None else pending
        """Evaluated when the copy is made."""

    def numpy(self) -> npt.NDArray[np.generic]:
        """Wait for the copy, and return it."""
        mx.eval(self.pending)
        if self._place is None:
            return np.array(self._array)
        data = ctypes.string_at(self._place.address, self._array.nbytes)
        self._place.give_back()
        return np.frombuffer(data, _NUMPY[self._array.dtype]).reshape(self._array.shape)


class HostCopies:
    """Makes copies through pinned memory, which ends with it; one that is never read gives its place back, too."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._memory = ExitStack()
        self._newest: deque[mx.array] = deque(maxlen=1)
        weakref.finalize(self, _give_back, self._memory, self._newest)

    def copy(self, array: mx.array) -> HostCopy:
        """Return the copy of an array, not made yet; where there is no pinned memory, numpy's."""
        if array.dtype not in _NUMPY:
            return HostCopy(array)
        size = max(_SMALLEST_BYTES, 1 << (array.nbytes - 1).bit_length())
        try:
            address = self._free[size].pop() if self._free[size] else self._memory.enter_context(pinned(size))
        except (AttributeError, OSError):
            return HostCopy(array)
        # Arrays of one number each: MLX keeps such where host and device have them at once.
        place, size_of = (mx.array([number], dtype=mx.int64) for number in (address, array.nbytes))
        (done,) = kernel("copy_to_host", ("x", "place", "size"), ("done",), _COPY)(
            inputs=[array, place, size_of],
            grid=(max(BLOCK, -(-array.nbytes // _BYTES_OF_THREAD)), 1, 1),
            threadgroup=(BLOCK, 1, 1),
            output_shapes=[(1,)],
            output_dtypes=[mx.uint8],
        )
        self._newest.append(done)
        return HostCopy(array, done, _Place(address, self._free[size], self))


class _Place:
    """Memory of one copy. Kernels of one stream run in turn, so that the next one may be queued for it at once."""

    def __init__(self, address: int, free: list[int], owner: "HostCopies") -> None:
        self.address = address
        self.give_back = weakref.finalize(self, free.append, address)
        # The memory is there for as long as a copy is.
        self._owner = owner


def _give_back(memory: ExitStack, newest: deque[mx.array]) -> None:
    """Free the memory when no copy is on its way into it."""
    mx.eval(*newest)
    memory.close()


def copy_of(array: mx.array, copies: HostCopies | None) -> HostCopy:
    """Return an array's copy, not made yet: through pinned memory where there is some, else numpy's."""
    return HostCopy(array) if copies is None else copies.copy(array)


_NUMPY = {mx.uint8: np.uint8, mx.float32: np.float32}

_COPY = """
    const char* source = (const char*)x;
    char* target = (char*)(size_t)place[0];
    size_t bytes = (size_t)size[0], at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 16;
    if (at + 16 <= bytes && (size_t)source % 16 == 0)
        *(uint4*)(target + at) = *(const uint4*)(source + at);
    else
        for (size_t i = at; i < at + 16 && i < bytes; i++) target[i] = source[i];
    if (at == 0) done[0] = 1;
"""

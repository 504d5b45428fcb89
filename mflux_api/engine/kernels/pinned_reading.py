"""Reading stored tensors into the memory of a CUDA device through pinned memory, beside which MLX's way is slow.

MLX reads into fresh pages, from which the driver copies through pages of its own: 2.1 GB/s on an H200, of files in the
page cache. Here threads read into slots of pinned memory, from which a kernel copies over the bus: 18 to 29 GB/s.
"""

import ctypes
import os
import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import attrs
import mlx.core as mx

from mflux_api.engine.device import is_out_of_memory
from mflux_api.engine.kernels.cuda_kernels import BLOCK, kernel, launched
from mflux_api.engine.kernels.pinned_memory import pinned
from mflux_api.engine.stored_tensors import StoredTensor, read_by_mlx
from mflux_api.machine import usable_cores

SLOT_BYTES = 8 << 20
SLOTS = 12
"""As many reads at once; pinning 96 MB takes 40 ms, and more of them gained nothing."""

_BYTES_OF_THREAD = 64


@attrs.frozen
class _Chunk:
    """A part of a tensor that fits into a slot."""

    descriptor: int
    offset: int
    """In the file."""
    size: int


def read_pinned(tensors: deque[StoredTensor]) -> Generator[mx.array, None, None]:
    """Yield the tensors' arrays, with the next ones being read; what cannot be read so is read by MLX.

    A :data:`mflux_api.engine.stored_tensors.TensorReader` for CUDA. Its threads end with it.
    """
    try:
        yield from _read(tensors)
    except (AttributeError, OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        print(f"tensors are read by MLX: {type(error).__name__}", file=sys.stderr)  # noqa: T201 - the parent's debug log
    yield from read_by_mlx(tensors)


def _read(tensors: deque[StoredTensor]) -> Generator[mx.array, None, None]:
    with ExitStack() as stack:
        descriptors = {file: stack.enter_context(file.open()) for file in {tensor.file for tensor in tensors}}
        chunks = [_chunks(tensor, descriptors[tensor.file]) for tensor in tensors]
        ring = stack.enter_context(_ring([chunk for of_tensor in chunks for chunk in of_tensor]))
        for of_tensor in chunks:
            read = [ring.next_tensor(tensors[0], len(of_tensor))]
            tensors.popleft()
            # Not held here: the array may only be needed until it is converted.
            yield read.pop()


def _chunks(tensor: StoredTensor, descriptor: int) -> list[_Chunk]:
    return [
        _Chunk(descriptor, tensor.offset + begin, min(SLOT_BYTES, tensor.nbytes - begin))
        for begin in range(0, tensor.nbytes, SLOT_BYTES)
    ]


@contextmanager
def _ring(chunks: Sequence[_Chunk]) -> Iterator["_Ring"]:
    slots = min(SLOTS, len(chunks))
    with pinned(slots * SLOT_BYTES) as address, ExitStack() as stack:
        # Neither a thread nor the device may be at the memory when it is given back.
        threads = ThreadPoolExecutor(min(SLOTS, usable_cores()), thread_name_prefix="pinned-reading")
        stack.callback(threads.shutdown, cancel_futures=True)
        ring = _Ring(chunks, address, slots, threads)
        stack.callback(ring.settle)
        yield ring


class _Ring:
    """Slots that threads read chunks into, one each, and that are copied from in the same order."""

    def __init__(self, chunks: Sequence[_Chunk], address: int, slots: int, threads: Executor) -> None:
        self._chunks = chunks
        self._slots = slots
        self._threads = threads
        self._memory = memoryview((ctypes.c_char * (slots * SLOT_BYTES)).from_address(address)).cast("B")
        places = [(address + number % slots * SLOT_BYTES, chunk.size) for number, chunk in enumerate(chunks)]
        self._places = mx.array(places, dtype=mx.int64)
        self._reads: deque[Future[None]] = deque()
        self._started = self._taken = 0
        self._last: mx.array | None = None
        for _ in range(slots):
            self._start_read()

    def next_tensor(self, tensor: StoredTensor, chunks: int) -> mx.array:
        """Return the tensor that the next chunks are, being copied.

        Raises:
            OSError: the file cannot be read.
        """
        if not chunks:
            return tensor.lazy
        parts = [self._next_part() for _ in range(chunks)]
        whole = parts[0] if chunks == 1 else mx.concatenate(parts)
        return whole.view(tensor.dtype).reshape(tensor.shape)

    def settle(self) -> None:
        """Wait until nothing is copied any more."""
        if self._last is not None:
            mx.eval(self._last)

    def _next_part(self) -> mx.array:
        number, size = self._taken, self._chunks[self._taken].size
        self._reads.popleft().result()
        (part,) = kernel("copy_pinned", ("place",), ("out",), _COPY)(
            inputs=[self._places[number : number + 1]],
            **launched(max(BLOCK, -(-size // _BYTES_OF_THREAD)), [(size,)], mx.uint8),
        )
        mx.async_eval(part)
        before, self._last = self._last, part
        self._taken += 1
        if before is not None:
            # While this one is copied: its slot is free.
            mx.eval(before)
            self._start_read()
        return part

    def _start_read(self) -> None:
        if self._started == len(self._chunks):
            return
        chunk, begin = self._chunks[self._started], self._started % self._slots * SLOT_BYTES
        self._reads.append(self._threads.submit(_fill, chunk, self._memory[begin : begin + chunk.size]))
        self._started += 1


def _fill(chunk: _Chunk, memory: memoryview) -> None:
    done = 0
    while done < chunk.size:
        count = os.preadv(chunk.descriptor, [memory[done:]], chunk.offset + done)
        if not count:
            raise OSError("the file has become shorter")
        done += count


# A thread has 4 times 16 bytes, a block apart, so that enough reads are under way over the bus.
_COPY = """
    const uint4* source = (const uint4*)(size_t)place[0];
    size_t bytes = (size_t)place[1], whole = bytes / 16, first = (size_t)blockIdx.x * blockDim.x * 4 + threadIdx.x;
    uint4 held[4];
    #pragma unroll
    for (int i = 0; i < 4; i++)
        if (first + i * blockDim.x < whole) held[i] = source[first + i * blockDim.x];
    #pragma unroll
    for (int i = 0; i < 4; i++)
        if (first + i * blockDim.x < whole) ((uint4*)out)[first + i * blockDim.x] = held[i];
    if (blockIdx.x == 0 && threadIdx.x < bytes % 16) {
        size_t at = whole * 16 + threadIdx.x;
        out[at] = ((const unsigned char*)source)[at];
    }
"""

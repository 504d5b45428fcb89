"""Memory of the host that a CUDA device reads and writes over the bus."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

_PORTABLE = 1


@contextmanager
def pinned(size: int) -> Iterator[int]:
    """Allocate so many bytes, and yield their address, which is the same for host and device.

    Raises:
        AttributeError: the driver has no such function.
        OSError: there are not so many, or no driver.
    """
    # The driver allocates for the thread's context, which MLX sets where it computes.
    mx.eval(mx.zeros((1,)) + 1)
    driver, pointer = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
    failed = driver.cuMemHostAlloc(ctypes.byref(pointer), ctypes.c_size_t(size), ctypes.c_uint(_PORTABLE))
    if failed or pointer.value is None:
        raise OSError("no pinned memory")
    try:
        yield pointer.value
    finally:
        driver.cuMemFreeHost(pointer)

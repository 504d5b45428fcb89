"""What the decoder's child may take, set by itself before it reads a stranger's byte; its parent watches, too."""

import fcntl
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_RESERVED_BYTES = 512 * 2**20
"""Address space beyond the memory that may be in use: libraries, and stacks of threads, are reserved and not used."""
_DESCRIPTORS = 64


def confine(memory_bytes: int) -> None:
    """Bound this process for good: address space and descriptors. Call it before Pillow is imported."""
    _lower(resource.RLIMIT_NOFILE, _DESCRIPTORS)
    _lower(resource.RLIMIT_CORE, 0)
    if sys.platform != "darwin":
        # macOS takes the limit and does not keep it.
        _lower(resource.RLIMIT_AS, memory_bytes + _RESERVED_BYTES)


def bound_next(cpu_seconds: int, wall_seconds: int) -> None:
    """Bound what this process does from now on: the system kills it, also inside of a library that never comes back."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + cpu_seconds + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    signal.alarm(wall_seconds)


@contextmanager
def end_with_parent(incoming: int) -> Iterator[None]:
    """Within the block the system kills this process when its parent is gone: a decoder may keep Python from looking.

    Args:
        incoming: the pipe that the parent writes to; it must write nothing meanwhile.
    """
    flags = fcntl.fcntl(incoming, fcntl.F_GETFL)
    with suppress(OSError):
        # SIGIO ends a process on Linux. Elsewhere it does not, and the alarm of `bound_next` is what ends an orphan.
        fcntl.fcntl(incoming, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(incoming, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.fcntl(incoming, fcntl.F_SETFL, flags)
        signal.alarm(0)


def _lower(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(what, (limit, limit))

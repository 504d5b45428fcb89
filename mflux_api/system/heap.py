"""Memory that was freed goes back to the system: what the C library of Linux keeps of large blocks otherwise."""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1 << 19


def return_large_blocks() -> None:
    """Have each large block of this process mapped apart, so that it goes back to the system when it is freed.

    By itself glibc stops doing so after the first ones: a server that had a few bodies of some megabytes in hand at one
    time kept 300 MB. Only for processes that are this program's own; elsewhere than with glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)

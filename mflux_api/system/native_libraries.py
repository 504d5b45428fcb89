"""Native libraries found by the dynamic linker alone: no search for one starts a program."""

import ctypes
import ctypes.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_HIGHEST_VERSION = 9


def find_library(name: str) -> str | None:
    """Return the name under which the dynamic linker has a library, or ``None``."""
    for candidate in (f"lib{name}.so", *(f"lib{name}.so.{version}" for version in range(_HIGHEST_VERSION + 1))):
        try:
            ctypes.CDLL(candidate)
        except OSError:
            continue
        return candidate
    return None


def search_without_programs() -> None:
    """Let every later search of this process be :func:`find_library`. Only for processes that are ours alone.

    On Linux ``ctypes.util.find_library`` starts ``ldconfig``, ``gcc`` and ``ld``: the last two from ``PATH``.
    """
    if sys.platform == "linux":
        ctypes.util.find_library = find_library


@contextmanager
def searching_without_programs() -> Iterator[None]:
    """Do so for the length of a block: imports whose libraries search for another."""
    search = ctypes.util.find_library
    search_without_programs()
    try:
        yield
    finally:
        ctypes.util.find_library = search

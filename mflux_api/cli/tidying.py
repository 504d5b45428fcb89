"""Memory that many clients took goes back to the system when they have left, not when the allocator gets to it."""

import ctypes
import gc
import time
from collections.abc import Callable

import psutil
import trio

from mflux_api.system.threads import read_in_thread

LOOK_SECONDS = 3.0
GROWN_BYTES = 32 * 2**20
"""What is worth a look through all objects, which is a pause of some milliseconds."""


QUIET_SHARE = 0.1
"""A process that computes less than this part of the time is quiet."""
QUIET_LOOKS = 3
"""How often a process that is quiet again is looked through: what it held is free by then, or in use."""


async def give_back_memory(
    resident: Callable[[], int] | None = None, give_back: Callable[[], None] | None = None
) -> None:
    """Collect garbage and return free memory to the system; runs until cancelled.

    That is done whenever the process has grown, and when it is quiet again after work: what clients still had in hand
    at the last look would never be given back otherwise. Of 150 MB that fifty clients without a pause left, the system
    got nothing back for as long as it was quiet.

    Args:
        resident: returns how much memory the process has; by default what the system says.
        give_back: has the allocator return what is free; by default glibc's, and nothing elsewhere.
    """
    resident = resident or _resident
    give_back = give_back or _trim()
    least = after = resident()
    quiet = QUIET_LOOKS
    computed = time.process_time()
    while True:
        await trio.sleep(LOOK_SECONDS)
        now = resident()
        computed, before = time.process_time(), computed
        quiet = quiet + 1 if computed - before < QUIET_SHARE * LOOK_SECONDS else 0
        least = min(least, now)
        after = min(after, now)
        if now - after > GROWN_BYTES or (now - least > GROWN_BYTES and 0 < quiet <= QUIET_LOOKS):
            gc.collect()
            await read_in_thread(give_back)
            after = resident()


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _trim() -> Callable[[], None]:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return (lambda: None) if trim is None else lambda: trim(0)

"""Threads that share numpy's work on a CPU: tasks over blocks of rows.

numpy's elementwise functions use one core, and its OpenBLAS one per core for one product at a time. Both let go of
Python's lock while they compute. So one product is given to one core, and the cores take blocks of rows in turn: what a
block computes has the same bits on whichever core, and however many there are.
"""

import ctypes
import functools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from mflux_api.machine import usable_cores

Array = npt.NDArray[np.float32]
Task = Callable[[], None]

# OpenBLAS's function in numpy's Linux wheels, with 64-bit and 32-bit integers, and as systems name it.
_SET_THREADS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)
# Longer than what one thread does between two lots of tasks.
_POLL_SECONDS = 0.002


class Threads:
    """The cores of this process. They belong to the pipeline that made them, and end with it or with the process."""

    def __init__(self, count: int | None = None) -> None:
        """Start the threads.

        Args:
            count: how many cores work, the caller's among them; ``None`` for those that the process may use.
        """
        # Where numpy's products cannot be told to use one core, they use all of them by themselves.
        limited = limit_numpy_products()
        if count is None:
            count = usable_cores() if limited else 1
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._helpers = [
            threading.Thread(target=_help, args=(self._queue,), name=f"numpy-{number}", daemon=True)
            for number in range(1, count)
        ]
        for helper in self._helpers:
            helper.start()
        self.close = weakref.finalize(self, _end, self._queue, len(self._helpers))
        """End the threads; also called when the object is forgotten."""

    @property
    def count(self) -> int:
        """How many cores work at most."""
        return 1 + len(self._helpers)

    def run(self, tasks: Sequence[Task]) -> None:
        """Do all tasks, in any order, and return when they are done; raise what one of them raised."""
        work = _Work(tasks)
        for _ in range(min(len(self._helpers), len(tasks) - 1)):
            self._queue.put(work)
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            work.take_part()
        _poll(work.finished.locked)
        work.finished.acquire()
        if work.error is not None:
            raise work.error


class _Work:
    """Tasks that several threads take one after the other."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = iter(tasks)
        self._left = len(tasks)
        self._lock = threading.Lock()
        self.error: BaseException | None = None
        self.finished = threading.Lock()
        """Held until the last task is done."""
        if tasks:
            self.finished.acquire()

    def take_part(self) -> None:
        """Do tasks until there are none left to begin."""
        # Each is handed out once: Python's lock guards a sequence's iterator.
        for task in self._tasks:
            try:
                task()
            except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
                self.error = error
            with self._lock:
                self._left -= 1
                last = self._left == 0
            if last:
                self.finished.release()


def _help(queue: "SimpleQueue[_Work | None]") -> None:
    np.seterr(over="ignore", under="ignore", invalid="ignore", divide="ignore")
    while (work := queue.get()) is not None:
        work.take_part()
        # What the tasks hold is freed before the next wait.
        del work
        _poll(queue.empty)


def _poll(waits: Callable[[], bool]) -> None:
    """Return when there is nothing to wait for, or after a while.

    An idle virtual core needs 0.1 ms and more to wake up, as long as many a task takes.
    """
    end = time.perf_counter() + _POLL_SECONDS
    while waits() and time.perf_counter() < end:
        # Lets go of Python's lock.
        time.sleep(0)


def _end(queue: "SimpleQueue[_Work | None]", count: int) -> None:
    for _ in range(count):
        queue.put(None)


_scratch = threading.local()


def scratch(name: str, *shape: int) -> Array:
    """Return this thread's buffer of that name with uninitialised numbers; its next use overwrites it."""
    size = 1
    for side in shape:
        size *= side
    buffers: dict[str, Array] = _scratch.__dict__
    found = buffers.get(name)
    if found is None or found.size < size:
        found = buffers[name] = np.empty(size, np.float32)
    return found[:size].reshape(shape)


def blocks(length: int, most: int) -> list[slice]:
    """Cut a length into an even number of blocks of about the same size; a function of its arguments alone."""
    count = -(-length // most)
    if count > 1:
        # Two cores are the least that matters; an odd block would leave one of them idle.
        count += count % 2
    size = -(-length // count)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


@functools.cache
def limit_numpy_products() -> bool:
    """Make each of numpy's matrix products use one core from now on; return whether that could be done."""
    for path in sorted(Path(np.__file__).parent.parent.glob("numpy.libs/lib*openblas*")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for name in _SET_THREADS:
            if hasattr(library, name):
                getattr(library, name)(1)
                return True
    return False

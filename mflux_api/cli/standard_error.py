"""Standard error that holds up nothing: a thread of its own writes, because the other end may have stopped reading."""

import io
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mflux_api.cli.encoding import ERRORS

_WAITING_TEXTS = 1000
"""Texts that wait for the other end; more are counted and dropped."""

_END_SECONDS = 0.2
"""What the texts that wait may take at the end of the process."""


def print_within(seconds: float, line: str) -> None:
    """Write a line, or give up after so many seconds; whatever is wrong with standard error is no error here."""
    # Not through sys.stderr: the thread that is stuck may hold its lock.
    writer = threading.Thread(target=_write, args=(f"{line}\n",), name="last line", daemon=True)
    with suppress(RuntimeError):
        # Where no thread can be had, there is no line.
        writer.start()
        writer.join(seconds)


def print_line(line: str) -> None:
    """Write a line, after those of the log, unless the other end does not read."""
    if isinstance(sys.stderr, BackgroundStream):
        sys.stderr.drain()
    print_within(_END_SECONDS, line)


@contextmanager
def in_background() -> Iterator[None]:
    """Have whatever writes to ``sys.stderr`` in the block (the log, warnings, Python itself) wait for no reader."""
    before, stream = sys.stderr, BackgroundStream()
    sys.stderr = stream
    try:
        yield
    finally:
        stream.drain()
        sys.stderr = before


class BackgroundStream(io.TextIOBase):
    """Standard error, written by a thread that alone waits when the other end does not read."""

    def __init__(self) -> None:
        self._texts: deque[str] = deque()
        self._dropped = 0
        self._writing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def writable(self) -> bool:
        """Return ``True``."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of standard error."""
        return _descriptor()

    def write(self, text: str) -> int:
        """Take a text; never waits for who reads it."""
        with self._changed:
            if len(self._texts) >= _WAITING_TEXTS:
                self._dropped += 1
                return len(text)
            if self._dropped:
                self._texts.append(f"(standard error was not read: {self._dropped} lines are missing)\n")
                self._dropped = 0
            self._texts.append(text)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_texts, name="standard error", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return len(text)

    def drain(self) -> None:
        """Wait until everything is written, or for a moment."""
        with self._changed:
            self._changed.wait_for(lambda: not self._texts and not self._writing, timeout=_END_SECONDS)

    def _write_texts(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._texts))
                self._writing = True
                text = "".join(self._texts)
                self._texts.clear()
            _write(text)


def _write(text: str) -> None:
    encoding = sys.__stderr__.encoding if sys.__stderr__ is not None else "utf-8"
    data = text.encode(encoding, ERRORS)
    # The reader has gone, or the descriptor was closed: there is no place left to say so.
    with suppress(OSError, ValueError):
        while data:
            data = data[os.write(_descriptor(), data) :]


def _descriptor() -> int:
    return sys.__stderr__.fileno() if sys.__stderr__ is not None else 2

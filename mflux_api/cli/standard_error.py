"""Standard error that holds up nothing: a thread of its own writes, because the other end may have stopped reading."""

import logging
import os
import sys
import threading
from collections import deque
from contextlib import suppress

_WAITING_LINES = 1000
"""Lines that wait for the other end; more are counted and dropped."""

_END_SECONDS = 0.2
"""What the lines that wait may take at the end of the process."""


def print_within(seconds: float, line: str) -> None:
    """Write a line, or give up after so many seconds; whatever is wrong with standard error is no error here."""
    # Not through logging: the thread that is stuck may hold its lock.
    writer = threading.Thread(target=_write, args=(f"{line}\n",), name="last line", daemon=True)
    with suppress(RuntimeError):
        # Where no thread can be had, there is no line.
        writer.start()
        writer.join(seconds)


def print_line(line: str) -> None:
    """Write a line, after those of the log, unless the other end does not read."""
    for handler in logging.getLogger().handlers:
        with suppress(OSError, ValueError):
            handler.flush()
    print_within(_END_SECONDS, line)


class BackgroundHandler(logging.Handler):
    """Writes log lines in a thread of its own, which alone waits when the other end does not read."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._writing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line; never waits for who reads it."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a message that does not fit its arguments costs its line only
            self.handleError(record)
            return
        with self._changed:
            if len(self._lines) >= _WAITING_LINES:
                self._dropped += 1
                return
            if self._dropped:
                self._lines.append(f"(standard error was not read: {self._dropped} lines are missing)\n")
                self._dropped = 0
            self._lines.append(f"{line}\n")
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until every line is written, or for a moment."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._writing, timeout=_END_SECONDS)

    def close(self) -> None:
        """Let what waits be written, as far as it is read; logging calls this at the end of the process."""
        self.flush()
        super().close()

    def _write_lines(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._lines))
                self._writing = True
                text = "".join(self._lines)
                self._lines.clear()
            _write(text)


def _write(text: str) -> None:
    data = text.encode("utf-8", "replace")
    # The reader has gone, or the descriptor was closed: there is no place left to say so.
    with suppress(OSError, ValueError):
        descriptor = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
        while data:
            data = data[os.write(descriptor, data) :]

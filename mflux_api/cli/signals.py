"""SIGTERM, SIGINT and SIGHUP: the first asks the service to end, the second to end at once. SIGUSR1 asks to reload."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import trio

_SECOND_SIGNAL_AFTER = 1.0
"""Seconds: a process group's signal may reach the server twice at once, and that is one signal."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

logger = logging.getLogger("mflux_api")


class StopSignals:
    """Two events for the event loop, set by signals that may also come before the loop runs, or when it is stuck."""

    def __init__(self, on_first: Callable[[], None], on_second: Callable[[], None]) -> None:
        """Take what to do at once in the signal handler, where next to nothing is allowed."""
        self.first = trio.Event()
        self.second = trio.Event()
        self._on_first = on_first
        self._on_second = on_second
        self._began = math.inf
        self._hurried = False
        self._token: trio.lowlevel.TrioToken | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals while the block runs, and ignore what comes later: the process is ending anyway."""
        for number in _STOP_SIGNALS:
            # Under nohup the server outlives its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)
        try:
            yield
        finally:
            # The interpreter gives a handler in Python up before its own end, but not this. The engine child, which
            # would inherit it, is gone.
            for number in _STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def heard_while_blocked(self, on_signal: Callable[[], None]) -> Iterator[None]:
        """Hear the signals also where the main thread waits for the disk, and Python cannot run a handler.

        Args:
            on_signal: called in another thread, for each signal that comes before the block has ended.
        """
        # Trio takes the descriptor for itself: the block ends before its loop begins.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)

        def hear() -> None:
            while numbers := os.read(reading, 64):
                if any(number in _STOP_SIGNALS for number in numbers):
                    on_signal()

        thread = threading.Thread(target=hear, name="signals", daemon=True)
        thread.start()
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writing)
            thread.join()
            os.close(reading)

    def listen(self) -> None:
        """Set the events of the loop that calls this, also for a signal that came before."""
        self._token = trio.lowlevel.current_trio_token()
        self._tell()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._began == math.inf:
            self._began = now
            self._on_first()
        elif now - self._began >= _SECOND_SIGNAL_AFTER and not self._hurried:
            self._hurried = True
            self._on_second()
        if self._token is not None:
            # The loop may have ended by now.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._tell, idempotent=True)

    def _tell(self) -> None:
        if self._began < math.inf:
            self.first.set()
        if self._hurried and not self.second.is_set():
            logger.warning("second signal: stopping now")
            self.second.set()


class ReloadSignal:
    """SIGUSR1, which would end the process where it is not taken: also before the event loop runs."""

    def __init__(self) -> None:
        self._came = False
        self._event: trio.Event | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signal while the block runs, and ignore what comes later."""
        signal.signal(signal.SIGUSR1, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    async def wait(self) -> None:
        """Wait for a signal; one that came since the last call, or before the loop ran, counts once."""
        self._token, self._event = trio.lowlevel.current_trio_token(), trio.Event()
        if self._came:
            self._event.set()
        await self._event.wait()
        self._came = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        if self._token is not None:
            # The loop may have ended by now.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._tell, idempotent=True)

    def _tell(self) -> None:
        if self._event is not None:
            self._event.set()

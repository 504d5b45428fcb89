"""``mflux-api serve`` over scripted engines: everything but the model is real. Run as a module, never by hand."""

import ctypes
import json
import os
import signal
import sys
import time
from functools import partial
from typing import Any, NoReturn

import trio

from mflux_api.actors.mailbox import Mailbox
from mflux_api.actors.stats import Stats
from mflux_api.cli import serve
from mflux_api.cli.main import main as command_line
from mflux_api.service import open_service
from mflux_api.storage.image_files import ImageFiles
from mflux_api.storage.sqlite import SqliteRepository
from mflux_api.supervisor import Started
from tests.support.scripted_engine import Script

MODULE = "tests.support.scripted_server"
OPTIONS = "SCRIPTED_SERVER"
"""Environment variable with the fields of the :class:`Script` as JSON."""


def environ(**fields: float | bool | str) -> dict[str, str]:
    """Return what a server's environment must hold to run that script.

    ``stuck_drain`` blocks the loop at the end, ``dead_disk`` is a FIFO that images are saved to,
    ``blocked_store`` is when its store waits for ever ("opening", "starting"), with
    ``signal_at_start`` SIGTERM comes while the service is being opened, ``doomed`` names an actor that keeps failing
    from SIGUSR2 on.
    """
    return {OPTIONS: json.dumps(fields)}


async def _stuck(*_: object) -> None:
    """A defect: the event loop does not go on."""
    time.sleep(3600)  # noqa: ASYNC251


def _save_to_dead_disk(fifo: str) -> None:
    """From now on saving an image is a call that does not come back, as on a network disk whose server is gone."""

    def save(*_: object, **__: object) -> NoReturn:
        # It has no writer.
        os.open(fifo, os.O_RDONLY)
        raise AssertionError("there was one")

    ImageFiles.save = save  # type: ignore[method-assign]


def _block_store(moment: str) -> None:
    """The store's disk does not answer when it is opened, or when the job store first looks into it."""

    def block(*_: object, **__: object) -> NoReturn:
        print("blocked", file=sys.stderr, flush=True)  # noqa: T201 - the test waits for it
        # In C, and no signal interrupts it: a system call on a dead disk.
        mutex = ctypes.create_string_buffer(256)
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
        raise AssertionError("it was unlocked")

    if moment == "opening":
        vars(serve)["SqliteRepository"] = block
    else:
        SqliteRepository.expire = block  # type: ignore[method-assign]


def _signal_at_start() -> None:
    """SIGTERM comes in the middle of the service's start."""

    async def signalled(self: Stats, status: Started) -> NoReturn:
        signal.raise_signal(signal.SIGTERM)
        # Only the signal ends this start.
        await trio.sleep_forever()

    Stats.run = signalled  # type: ignore[method-assign]


def _doomed_when_told(name: str) -> None:
    """From SIGUSR2 on that actor fails whenever it asks for a message."""
    receive = Mailbox.receive
    doomed = False

    def doom(*_: object) -> None:
        nonlocal doomed
        doomed = True

    async def failing(self: Mailbox[Any]) -> Any:
        if doomed and self.role == name:
            raise ZeroDivisionError("injected")
        return await receive(self)

    signal.signal(signal.SIGUSR2, doom)
    Mailbox.receive = failing  # type: ignore[method-assign]


def main() -> int:
    """Run the command line with every engine replaced."""
    options = json.loads(os.environ.get(OPTIONS, "{}"))
    if (disk := options.pop("dead_disk", None)) is not None:
        _save_to_dead_disk(disk)
    if options.pop("signal_at_start", False):
        _signal_at_start()
    if (moment := options.pop("blocked_store", None)) is not None:
        _block_store(moment)
    if options.pop("stuck_drain", False):
        vars(serve)["_drain"] = _stuck
    _doomed_when_told(options.pop("doomed", ""))
    script = Script(**options)
    vars(serve)["open_service"] = partial(open_service, start_engine=script.start)
    return command_line()


if __name__ == "__main__":
    sys.exit(main())

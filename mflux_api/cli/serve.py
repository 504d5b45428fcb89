"""``mflux-api serve``: the service from its start until a signal, with its lock, its store and its drain."""

import argparse
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import attrs
import trio

from mflux_api.access.keys_file import read_keys
from mflux_api.actors.webhooks.signing import read_signer
from mflux_api.cli.audience import describe_audience
from mflux_api.cli.exit_status import EXIT_INTERNAL
from mflux_api.cli.folders import why_not_writable
from mflux_api.cli.log_format import set_log_format
from mflux_api.cli.signals import ReloadSignal, StopSignals
from mflux_api.cli.tidying import give_back_memory
from mflux_api.cli.watchdog import Watchdog
from mflux_api.config import Settings, load_settings
from mflux_api.errors import ConfigError
from mflux_api.service import Service, open_service
from mflux_api.storage.image_files import ImageFiles
from mflux_api.storage.loras import LoraFiles
from mflux_api.storage.repository import Repository
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from mflux_api.storage.state_lock import StateLock
from mflux_api.system.descriptors import raise_descriptor_limit
from mflux_api.system.heap import return_large_blocks
from mflux_api.system.threads import read_in_thread

SWITCH_SECONDS = 0.0005
"""How long a thread that computes keeps the interpreter from the event loop, which lets go of it with every read and
write: of Python's own 5 ms a turn of the loop with twenty clients waits for twenty."""

_HALT_SECONDS = 0.6
"""After the drain: what putting a halted job back into the queue may take; it is a write to the disk."""

_RESPONSE_GRACE_SECONDS = 0.9
"""After the drain: until when answers that are on their way may be sent."""

STUCK_SECONDS = 5.0
"""After the drain: the hard limit, at which the watchdog ends the process. An end takes less than 2 s."""

logger = logging.getLogger("mflux_api")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument("--host", help="address to listen on (default: 0.0.0.0)")
    parser.add_argument("--port", type=int, help="port to listen on (default: 7861)")


def run(options: argparse.Namespace) -> int:
    """Serve until a signal.

    Raises:
        ConfigError: the configuration or the state directory cannot be used.
        ServiceFailed: the supervision tree stopped restarting a part of it.
    """
    return_large_blocks()
    server = {"host": options.host, "port": options.port, "log_level": options.log_level}
    overrides: dict[str, dict[str, Any]] = {"server": server}
    settings = load_settings(options.config, overrides=overrides)
    _set_log_level(settings)
    set_log_format(settings.logging.format)
    raise_descriptor_limit()
    sys.setswitchinterval(SWITCH_SECONDS)
    with Watchdog(EXIT_INTERNAL) as watchdog:
        stop = StopSignals(
            on_first=partial(watchdog.arm, settings.server.drain_timeout_seconds + STUCK_SECONDS),
            on_second=partial(watchdog.arm, STUCK_SECONDS),
        )
        reload = ReloadSignal()
        read = partial(load_settings, options.config, overrides=overrides)
        with stop.installed(), reload.installed(), _collection_paused() as resume_collection:
            start = Start(settings, stop, resume_collection, partial(watchdog.arm, STUCK_SECONDS), reload, read)
            _serve_jobs(start)
    return 0


def _set_log_level(settings: Settings) -> None:
    logging.getLogger().setLevel(settings.server.log_level.upper())


@contextmanager
def _collection_paused() -> Iterator[Callable[[], None]]:
    """Hold back the garbage collector until the start is over; yields the function that says so.

    What imports make stays: looking through it is 12 % of the start, and later a pause of the loop.
    """

    def resume() -> None:
        gc.freeze()
        gc.enable()

    gc.freeze()
    gc.disable()
    try:
        yield resume
    finally:
        gc.enable()


@attrs.frozen
class Start:
    """What a server is started with."""

    settings: Settings
    stop: StopSignals
    on_listening: Callable[[], None]
    on_hung: Callable[[], None]
    """Called when a part of the service does not stop."""
    reload: ReloadSignal
    read_settings: Callable[[], Settings]
    """Reads the settings again, for a reload."""


def _serve_jobs(start: Start) -> None:
    settings = start.settings
    with ExitStack() as held:
        # Opening the store may wait for a disk that does not answer: there is nothing to drain then.
        with start.stop.heard_while_blocked(start.on_hung):
            # A mistake in the file of keys, or in a secret, is told before anything is opened.
            keys = len(read_keys(settings.security).keys)
            read_signer(settings.webhooks)
            held.enter_context(StateLock.from_settings(settings)).say_reloads()
            _remove_leftovers(settings)
            _warn_of_folders(settings)
            max_input_bytes = round(settings.scheduler.max_inputs_gb * 1e9)
            repository = held.enter_context(
                SqliteRepository(settings.state_dir / DATABASE_NAME, max_input_bytes=max_input_bytes)
            )
        trio.run(_serve_until_signal, start, repository, keys)


def _warn_of_folders(settings: Settings) -> None:
    """Say at the start what every job would fail with in its end."""
    why = why_not_writable(settings.generation.output_dir, make=True)
    if why:
        logger.warning(
            "generation.output_dir cannot be written (%s), so jobs will fail; change its permissions, or choose "
            "another folder",
            why,
        )


def _remove_leftovers(settings: Settings) -> None:
    try:
        count = ImageFiles(settings.generation.output_dir).remove_leftovers()
        uploads = LoraFiles.from_settings(settings).remove_leftovers()
    except OSError as error:
        logger.warning("half-written files cannot be removed: %s", error.strerror)
        return
    if count:
        logger.info("removed %d half-written image(s) of a server that was killed", count)
    if uploads:
        logger.info("removed %d half-written LoRA(s) of a server that was killed", uploads)


async def _serve_until_signal(start: Start, repository: Repository, keys: int) -> None:
    settings, stop = start.settings, start.stop
    stop.listen()
    starting, listening = trio.CancelScope(), trio.Event()

    async def cancel_the_start() -> None:
        await stop.first.wait()
        if not listening.is_set():
            starting.cancel()

    async with trio.open_nursery() as watching:
        watching.start_soon(cancel_the_start)
        watching.start_soon(give_back_memory)
        with starting:
            async with (
                open_service(settings, repository=repository, on_hung=start.on_hung) as service,
                trio.open_nursery() as nursery,
            ):
                for url in await nursery.start(service.serve_http):
                    logger.info("listening on %s", url)
                    _say_who_can_call(settings, url, keys)
                listening.set()
                start.on_listening()
                nursery.start_soon(_reload_on_signal, service, start.reload, start.read_settings)
                await stop.first.wait()
                await _drain(service, settings.server.drain_timeout_seconds, stop.second)
                nursery.cancel_scope.cancel()
        watching.cancel_scope.cancel()
    logger.info("stopped")


def _say_who_can_call(settings: Settings, url: str, keys: int) -> None:
    for line in describe_audience(settings, port=urlsplit(url).port or settings.server.port, keys=keys):
        logger.log(line.level, "%s", line.text)


async def _reload_on_signal(service: Service, reload: ReloadSignal, read: Callable[[], Settings]) -> None:
    """Read the keys and the log level again at each signal; a mistake leaves them as they were."""
    while True:
        await reload.wait()
        try:
            settings = await read_in_thread(read)
            _set_log_level(settings)
            count = await service.reload_keys(settings.security)
        except ConfigError as error:
            logger.error("reload: the API keys stay as they were: %s", error)
        else:
            logger.info("reload: there are %d API key(s) now", count)


async def _drain(service: Service, seconds: float, at_once: trio.Event) -> None:
    """Let the running job end, for so long or until told otherwise; then stop it and give it back to the queue."""
    logger.info("draining: no new work; waiting up to %g s for the running job", seconds)
    deadline = trio.current_time() + seconds
    with trio.move_on_at(deadline):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when, at_once, nursery.cancel_scope)
            await service.drain()
            nursery.cancel_scope.cancel()
    deadline = min(deadline, trio.current_time()) if at_once.is_set() else deadline
    service.end_by(deadline + _RESPONSE_GRACE_SECONDS)
    with trio.move_on_after(_HALT_SECONDS):
        await service.drain(halt=True)


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()

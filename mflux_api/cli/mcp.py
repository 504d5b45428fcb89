"""``mflux-api mcp``: tools for an assistant on standard input and output."""

import argparse
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from mflux_api.cli.exit_status import EXIT_INTERNAL
from mflux_api.cli.folders import require_output_dir
from mflux_api.cli.running_server import address, base_url
from mflux_api.cli.signals import StopSignals
from mflux_api.cli.watchdog import Watchdog
from mflux_api.config import Settings, load_settings
from mflux_api.errors import ConfigError
from mflux_api.service import open_service
from mflux_api.storage.state_lock import find_holder

if TYPE_CHECKING:
    from mflux_api.mcp.backend import Backend
    from mflux_api.mcp.files import InputFiles

_STUCK_SECONDS = 8.0
"""After a signal: when the watchdog ends the process. Telling a server of a cancel may take 5 s of it."""

_MISSING = (
    "the tools for assistants need the extra 'mcp'; type `uv sync --extra mcp` in a checkout, or "
    "`pip install 'mcp>=2.3,<3'` where pip installed this"
)

logger = logging.getLogger("mflux_api")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument("--url", help="a running server to use (default: a service of its own)")
    parser.add_argument("--output-dir", type=Path, help="where images go (default: ./output)")
    parser.add_argument(
        "--root",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder that images to edit may lie in, beside the working directory and the output folder; repeatable",
    )


def run(options: argparse.Namespace) -> int:
    """Serve one client until it closes standard input.

    Raises:
        ConfigError: the extra is not installed, or the configuration cannot be used.
        ServiceFailed: the service gave up.
        OSError: the client cannot be read from or written to.
    """
    try:
        from mflux_api.mcp.server import serve
        from mflux_api.mcp.stdio import standard_streams
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("mflux_api"):
            raise
        raise ConfigError(_MISSING) from None
    overrides: dict[str, dict[str, Any]] = {"generation": {"output_dir": options.output_dir}}
    settings = load_settings(options.config, overrides=overrides)
    require_output_dir(settings)
    files = _input_files(settings, options.root)
    if options.url is None:
        warn_of_server(settings)
    with Watchdog(EXIT_INTERNAL) as watchdog:
        arm = partial(watchdog.arm, _STUCK_SECONDS)
        opened = partial(_embedded, settings, arm) if options.url is None else _remote(settings, options.url)
        stop = StopSignals(on_first=arm, on_second=arm)
        with stop.installed(), standard_streams() as streams:

            async def main() -> None:
                stop.listen()
                await serve(opened, files, streams, stop.first)

            trio.run(main)
    return 0


@asynccontextmanager
async def _embedded(settings: Settings, on_hung: Any) -> "AsyncIterator[Backend]":
    from mflux_api.mcp.embedded import EmbeddedBackend

    async with open_service(settings, previews=False, on_hung=on_hung) as service:
        yield EmbeddedBackend(service)


def warn_of_server(settings: Settings) -> None:
    """Say where a server runs beside whose model a second one would be in memory."""
    if find_holder(settings.state_dir) is not None:
        logger.warning("a server runs here: with --url %s its engine is used, and no second one", address(settings))


def _remote(settings: Settings, url: str) -> "Callable[[], AbstractAsyncContextManager[Backend]]":
    """Return what opens a running server.

    Raises:
        ConfigError: ``url`` is not the address of a server.
    """
    from mflux_api.mcp.remote import open_remote

    key = settings.security.api_keys[0] if settings.security.api_keys else None
    return partial(open_remote, base_url(url), key, settings.generation.output_dir)


def _input_files(settings: Settings, roots: list[Path]) -> "InputFiles":
    """Return the folders that images may lie in.

    Raises:
        ConfigError: one that was named is not a folder.
    """
    from mflux_api.mcp.files import InputFiles, may_be_root, resolve_folders

    for root in roots:
        if not root.expanduser().is_dir():
            raise ConfigError(f"--root {root}: not a folder; name one that is there")
    here = Path.cwd()
    folders = [settings.generation.output_dir, *(root.expanduser() for root in roots)]
    if may_be_root(here):
        folders.append(here)
    return InputFiles(resolve_folders(folders), here)

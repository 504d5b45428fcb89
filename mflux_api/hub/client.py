"""The service's side of a download: how to start its child, follow it, and start it again when it is killed."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from mflux_api.errors import DownloadFailed, by_code
from mflux_api.hub.protocol import DOWNLOAD_TYPES, DownloadDone, DownloadFailure, DownloadProgress, DownloadRequest
from mflux_api.ipc.child_process import ChildDied, ChildProcess
from mflux_api.system.nurseries import unwrapped_nursery

logger = logging.getLogger(__name__)

_RESTART_SECONDS = 0.5


@attrs.frozen(kw_only=True)
class DownloadOptions:
    """How to start a child, and when to stop trying."""

    command: tuple[str, ...] = (sys.executable, "-P", "-m", "mflux_api.hub.child")
    home: Path | None = None
    """A child's home where the user has none."""
    silence: float = 60.0
    """Seconds without a frame after which the child counts as dead."""
    deaths: int = 3
    """Children that may die in a row without a byte of progress."""


class _DownloadChild(ChildProcess):
    kind = "download"
    inherits = frozenset({"HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"})
    types = DOWNLOAD_TYPES


async def download_repository(
    order: DownloadRequest, options: DownloadOptions, report: Callable[[DownloadProgress], None]
) -> DownloadDone:
    """Download a repository; cancelling ends the child at once, and what has arrived stays for the next call.

    Args:
        order: what to download, and where to.
        options: how to run the child.
        report: called twice a second with the progress.

    Raises:
        DownloadFailed: it cannot be downloaded; the message says why and what to do.
        ModelGated: the licence has to be accepted first.
        DiskFull: the disk has no room for it.
    """
    deaths, furthest = 0, -1

    def note(progress: DownloadProgress) -> None:
        nonlocal deaths, furthest
        if progress.bytes_done > furthest >= 0:
            deaths = 0
        furthest = max(furthest, progress.bytes_done)
        report(progress)

    while True:
        try:
            return await _download_once(order, options, note)
        except ChildDied as died:
            deaths += 1
            logger.warning("the download of %s died: %s", order.repo, died.reason)
            if deaths >= options.deaths:
                raise DownloadFailed(
                    f"The download of {order.repo} ended {deaths} times without a byte of progress ({died.reason}); "
                    "try again, or run with --log-level debug"
                ) from None
            await trio.sleep(_RESTART_SECONDS * deaths)


async def _download_once(
    order: DownloadRequest, options: DownloadOptions, report: Callable[[DownloadProgress], None]
) -> DownloadDone:
    child = _DownloadChild(await _DownloadChild.launch(options.command, options.home))
    async with unwrapped_nursery() as nursery:
        nursery.start_soon(child.log_stderr, name=f"download {child.pid} stderr")
        try:
            outcome = await _follow(child, order, options.silence, report)
        finally:
            with trio.CancelScope(shield=True):
                await child.aclose(force=True)
    if isinstance(outcome, DownloadFailure):
        raise by_code(outcome.code)(outcome.message, outcome.details)
    return outcome


async def _follow(
    child: _DownloadChild, order: DownloadRequest, silence: float, report: Callable[[DownloadProgress], None]
) -> DownloadDone | DownloadFailure:
    await child.send(order)
    while True:
        frame, _ = await child.receive_within(silence)
        match frame:
            case DownloadProgress() as progress:
                report(progress)
            case DownloadDone() | DownloadFailure() as last:
                return last
            case _:
                raise ChildDied("it sent a request")

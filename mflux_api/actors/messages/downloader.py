"""What the downloader is told and asked, and its answers: how far a download is, or why it failed."""

import attrs
import trio

from mflux_api.actors.mailbox import Ask
from mflux_api.jobs.job import Failure


@attrs.frozen(kw_only=True)
class Transfer:
    """How far a download is."""

    bytes_done: int = 0
    bytes_total: int | None = None
    """``None`` until the hub has said how large it all is."""
    bytes_per_second: float | None = None
    """Over the last seconds."""
    eta_seconds: float | None = None


@attrs.frozen(kw_only=True)
class EnsureOnDisk(Ask[None]):
    """Have a model's files on disk, downloading them where that is needed and allowed; answered when they are."""

    model: str
    updates: trio.MemorySendChannel[Transfer] = attrs.field(eq=False, repr=False)
    """Gets how far it is; lossy."""


@attrs.frozen(kw_only=True)
class DownloadAbandoned:
    """A job waits no more for its model: a download that is not wanted any more is stopped, and what it has is kept."""


@attrs.frozen(kw_only=True)
class StartDownload(Ask[None]):
    """Download a model whether a job needs it or not; answered when that has begun, or there is nothing to do."""

    model: str


@attrs.frozen(kw_only=True)
class DownloadState:
    """What a downloader knows of one model."""

    transfer: Transfer | None = None
    """Set while it is being downloaded."""
    failure: Failure | None = None
    """Why the last try failed."""


@attrs.frozen(kw_only=True)
class GetDownload(Ask[DownloadState]):
    """Read how far a model's download is."""

    model: str


@attrs.frozen(kw_only=True)
class DeleteModel(Ask[None]):
    """Remove a model from disk, if this service put it there; a download that only waits for itself is stopped."""

    model: str


DownloaderMessage = EnsureOnDisk | DownloadAbandoned | StartDownload | GetDownload | DeleteModel

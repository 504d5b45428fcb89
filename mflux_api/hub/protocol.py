"""What the service and a download child say to each other, in the frames of :mod:`mflux_api.ipc.frames`."""

from collections.abc import Mapping
from typing import Annotated, Any

import attrs
from msgspec import Meta

Natural = Annotated[int, Meta(ge=0)]


@attrs.frozen(kw_only=True)
class DownloadRequest:
    """Download one repository; the only command, and the child's whole life."""

    repo: str
    revision: str | None
    cache_dir: str
    licence: str
    """What has to be accepted where the repository is gated."""
    files: tuple[str, ...]
    """Patterns of what is wanted."""


@attrs.frozen(kw_only=True)
class DownloadProgress:
    """How far it is; sent twice a second, and so a sign of life too."""

    bytes_done: Natural
    bytes_total: Natural | None
    """``None`` until the hub has said how large it all is."""


@attrs.frozen(kw_only=True)
class DownloadDone:
    """All of it is on disk, and marked as complete."""

    commit: str
    bytes_total: Natural


@attrs.frozen(kw_only=True)
class DownloadFailure:
    """It cannot be done; what has arrived stays for the next try."""

    code: str
    message: str
    details: Mapping[str, Any] = attrs.field(factory=dict)


DOWNLOAD_TYPES: Mapping[str, type[Any]] = {
    kind.__name__: kind for kind in (DownloadRequest, DownloadProgress, DownloadDone, DownloadFailure)
}
"""Tag → class of every frame."""

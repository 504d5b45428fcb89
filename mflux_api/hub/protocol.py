"""What the service and a download child say to each other, in the frames of :mod:`mflux_api.ipc.frames`."""

from collections.abc import Mapping
from typing import Annotated, Any

import attrs
from msgspec import Meta

from mflux_api.ipc.printable import MAX_NAME, MAX_SENTENCE, printable, sentence

Natural = Annotated[int, Meta(ge=0)]


@attrs.frozen(kw_only=True)
class DownloadRequest:
    """Download one repository; the only command, and the child's whole life."""

    repo: str
    revision: str | None
    cache_dir: str
    licence: str
    """The licence that a gated repository asks for."""
    files: tuple[str, ...]
    """Patterns of the files that are wanted."""


@attrs.frozen(kw_only=True)
class DownloadProgress:
    """The progress; sent twice a second, and so a heartbeat too."""

    bytes_done: Natural
    bytes_total: Natural | None
    """``None`` until the hub has said the sizes of all files."""


@attrs.frozen(kw_only=True)
class DownloadDone:
    """The repository is on disk, and marked as complete."""

    commit: Annotated[str, Meta(max_length=MAX_NAME)] = attrs.field(converter=printable)
    bytes_total: Natural


@attrs.frozen(kw_only=True)
class DownloadFailure:
    """The download failed; what has arrived stays for the next try."""

    code: Annotated[str, Meta(max_length=MAX_NAME)] = attrs.field(converter=printable)
    message: Annotated[str, Meta(max_length=MAX_SENTENCE)] = attrs.field(converter=sentence)
    details: Mapping[str, Any] = attrs.field(factory=dict)


DOWNLOAD_TYPES: Mapping[str, type[Any]] = {
    kind.__name__: kind for kind in (DownloadRequest, DownloadProgress, DownloadDone, DownloadFailure)
}
"""Tag → class of every frame."""

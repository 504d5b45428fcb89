"""What the event hub is told and asked, and what its followers get."""

from typing import Final

import attrs
import trio

from mflux_api.access.visibility import Visibility
from mflux_api.actors.mailbox import Ask
from mflux_api.jobs.progress import JobEvent, PartialImage, StreamEvent

PARTIAL_IMAGES_WAITING: Final = 3
"""Partial images that may wait for one follower; one that is behind by more goes without the next."""


@attrs.frozen(kw_only=True)
class LogEntry:
    """One event with its place in the job's log."""

    id: str
    """What a client sends back as ``Last-Event-ID``: ``{boot}-{n}``, and for the terminal event one made of the job."""
    event: StreamEvent


@attrs.frozen(kw_only=True)
class Subscription:
    """The past that a subscriber missed, and the channel the future comes through."""

    logged: bool
    """Whether the job has a log; without one it is not known what there was to miss."""

    backlog: tuple[LogEntry, ...]
    latest: LogEntry | None
    """The newest event before the terminal one, when the subscriber named no event."""
    channel: trio.MemoryReceiveChannel[LogEntry]


@attrs.frozen(kw_only=True)
class Publish:
    """Tell all followers of the job. After the terminal event nothing more is taken."""

    job_id: str
    event: JobEvent
    owner: str = ""
    """Whose job it is."""


@attrs.frozen(kw_only=True)
class Show:
    """Show a partial image to those followers of its job that asked for them."""

    image: PartialImage


@attrs.frozen(kw_only=True)
class FeedEntry:
    """One event of any job, with its place in the feed of all."""

    id: str
    """What a client sends back as ``Last-Event-ID``."""
    number: int
    owner: str
    event: JobEvent


@attrs.frozen(kw_only=True)
class Feed:
    """What a follower of all its jobs missed, and the channel the future comes through."""

    newest: str
    """The id of the newest event of all, from which the channel goes on."""
    backlog: tuple[FeedEntry, ...]
    complete: bool
    """Whether the backlog is all that there was since the follower's last event."""
    channel: trio.MemoryReceiveChannel[FeedEntry]


@attrs.frozen(kw_only=True)
class FollowAll(Ask[Feed]):
    """Follow all jobs that are visible; closing the channel ends it."""

    visible: Visibility
    last_event_id: str | None = None


@attrs.frozen(kw_only=True)
class Subscribe(Ask[Subscription]):
    """Follow one job; closing the channel ends it. A job without a log has no past, and its channel is closed."""

    job_id: str
    last_event_id: str | None = None
    previews: bool = False
    """Also send events that carry a preview; no log has them."""
    partial_images: bool = False
    """Also send partial images; no log has them."""


@attrs.frozen(kw_only=True)
class OpenLogs(Ask[tuple[str, ...]]):
    """The jobs that have a log without a terminal event."""


@attrs.frozen(kw_only=True)
class CountFollowers(Ask[int]):
    """Count the streams of jobs, and those of all jobs, that are followed now."""


@attrs.frozen(kw_only=True)
class EndStreams:
    """Nothing more will happen to any job here: end the streams of unfinished jobs, and open no new ones."""


@attrs.frozen(kw_only=True)
class CloseLog:
    """The job's end cannot be told here: end its streams and forget its log, and each follower reads the job itself."""

    job_id: str


HubMessage = Publish | Show | Subscribe | FollowAll | OpenLogs | CountFollowers | CloseLog | EndStreams

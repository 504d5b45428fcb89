"""JSON of ``/api/v1/session`` and of tickets."""

import attrs


@attrs.frozen(kw_only=True)
class SessionRequest:
    """``POST /api/v1/session``."""

    key: str | None = attrs.field(default=None, repr=False)
    """An API key, unless a header has it."""


@attrs.frozen(kw_only=True)
class SessionResponse:
    """``/api/v1/session``."""

    name: str | None
    """The key's name; ``null`` where the service has no keys, and needs no session."""
    scopes: tuple[str, ...]
    expires_at: str | None
    """When the session ends; ``null`` where a header has the key."""


@attrs.frozen(kw_only=True)
class TicketResponse:
    """``POST /api/v1/jobs/{job_id}/ticket``."""

    job_id: str
    ticket: str | None
    """Goes into the address as ``?ticket=``; ``null`` where the service has no keys."""
    expires_at: str | None
    """A stream that has begun goes on after that."""
    stream: str
    """The path for an ``EventSource``."""
    images: tuple[str, ...]
    """The paths of the images that there are."""

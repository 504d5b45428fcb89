"""Waiting for a job that goes on without its client: for how long, as the client asks, and in how many places."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import attrs
import trio
from quart import Response

from mflux_api.errors import ServerBusy, ShuttingDown, TooManyConnections
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.operations import query_parameter
from mflux_api.http.preferences import MAX_WAIT_SECONDS, Preferences, read_preferences
from mflux_api.http.query import number_parameter
from mflux_api.http.security.guard import caller
from mflux_api.http.slots import Slots
from mflux_api.jobs.job import Job

NAME: Final = "wait"
PARAMETER: Final = query_parameter(
    NAME, {"type": "integer", "minimum": 0, "maximum": int(MAX_WAIT_SECONDS)}, "Seconds to wait for the job's end"
)
HEADER: Final[dict[str, Any]] = {
    "name": "Prefer",
    "in": "header",
    "description": "RFC 7240: respond-async, wait=SECONDS",
    "schema": {"type": "string"},
}


@attrs.frozen(kw_only=True)
class Wait:
    """What a request asks for: nothing, or that its job goes on without its client."""

    seconds: float | None
    """How long to wait for the job's end; ``None`` where nothing is said of it."""
    preferred: Preferences
    """What of it is a preference."""

    @property
    def asynchronous(self) -> bool:
        """Whether the job goes on without the client."""
        return self.preferred.respond_async or self.seconds is not None

    def apply(self, response: Response) -> Response:
        """Say in an answer which preferences it follows."""
        return self.preferred.apply(response)


def read_wait(*, of_a_look: bool = False) -> Wait:
    """Return what the current request asks for; the parameter of its address counts before the header.

    Args:
        of_a_look: whether the request submits nothing, so that nothing goes on without it.

    Raises:
        InvalidParameter: the parameter is no number of seconds.
    """
    preferred, seconds = read_preferences(), number_parameter(NAME, 0, int(MAX_WAIT_SECONDS))
    if of_a_look:
        preferred = attrs.evolve(preferred, respond_async=False)
    if seconds is None:
        return Wait(seconds=preferred.wait, preferred=preferred)
    return Wait(seconds=float(seconds), preferred=attrs.evolve(preferred, wait=None))


class Waits:
    """The waits of one app."""

    def __init__(self, gateway: Gateway, slots: Slots) -> None:
        """Take what bounds them: they keep connections open as streams do."""
        self._gateway = gateway
        self._slots = slots

    @contextmanager
    def place(self, asked: Wait) -> Iterator[Wait]:
        """Have a place for a wait while the block lasts; yield what is followed: a preference needs no place.

        Raises:
            TooManyConnections: the caller has all places that it may have.
            ServerBusy: all are taken.
        """
        with ExitStack() as stack:
            try:
                if asked.seconds:
                    stack.enter_context(self._slots.slot(caller().owner))
            except (TooManyConnections, ServerBusy):
                if asked.preferred.wait is None:
                    raise
                asked = Wait(seconds=0.0, preferred=attrs.evolve(asked.preferred, wait=None))
            yield asked

    async def end(self, job: Job, wait: Wait) -> Job | None:
        """Return a job as it ended; ``None`` where its end comes after the wait, or at the next start only."""
        if job.status.terminal:
            return job
        with trio.move_on_after(wait.seconds or 0.0):
            try:
                return await self._gateway.finished(job.id)
            except ShuttingDown:
                return None
        return None

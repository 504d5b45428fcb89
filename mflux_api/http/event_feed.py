"""The stream of all jobs of a caller as server-sent events: those of each job's own stream, in one.

Its ends have the paths of their images in place of the images: a stream of everything must not wait for a disk.
"""

from collections import deque
from collections.abc import Callable
from types import TracebackType

import attrs
import trio
from quart import Response
from quart.wrappers.response import ResponseBody

from mflux_api.actors.messages import Feed, FeedEntry
from mflux_api.gateway.jobs import JobView
from mflux_api.http.render import job_with_paths
from mflux_api.http.responses import Answer, to_json
from mflux_api.http.sse import KEEP_ALIVE, KEEP_ALIVE_SECONDS, NAMES, event, event_stream
from mflux_api.jobs.progress import Finished


@attrs.frozen(kw_only=True)
class FeedBegins:
    """Data of ``begin`` and ``resync``, the first event: from here on everything is told.

    ``resync`` says that more has happened since the client's last event than is known: ask for the jobs once.
    """

    following: bool = True


def feed_response(feed: Feed, *, resumed: bool, allowed: Callable[[], bool], paths_below: str) -> Response:
    """Return the response that streams a feed until its client leaves.

    Args:
        feed: what was missed, and what comes.
        resumed: whether the client said which event it had last.
        allowed: whether the client may still follow; asked at every event and every keep-alive.
        paths_below: what the images' paths begin with for the client.
    """
    return event_stream(_Body(feed, resumed=resumed, allowed=allowed, paths_below=paths_below))


class _Body(ResponseBody):
    def __init__(self, feed: Feed, *, resumed: bool, allowed: Callable[[], bool], paths_below: str) -> None:
        self._channel = feed.channel
        self._allowed = allowed
        self._paths_below = paths_below
        begins = [] if resumed and feed.complete else [_begin(feed, resumed=resumed)]
        self._past = deque([*begins, *(_event_of(entry, paths_below) for entry in feed.backlog)])

    async def __aenter__(self) -> "_Body":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._past.clear()
        self._channel.close()

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        if self._past:
            return self._past.popleft()
        entry: FeedEntry | None = None
        with trio.move_on_after(KEEP_ALIVE_SECONDS):
            try:
                entry = await self._channel.receive()
            except trio.EndOfChannel:
                # The hub ends, or this client was too slow: it comes back with Last-Event-ID.
                raise StopAsyncIteration from None
        if not self._allowed():
            raise StopAsyncIteration
        return KEEP_ALIVE if entry is None else _event_of(entry, self._paths_below)


def _begin(feed: Feed, *, resumed: bool) -> bytes:
    return _event("resync" if resumed else "begin", feed.newest, FeedBegins())


def _event_of(entry: FeedEntry, paths_below: str) -> bytes:
    happened = entry.event
    if isinstance(happened, Finished):
        view = JobView(job=happened.job, live=None)
        return _event(NAMES[happened.job.status], entry.id, job_with_paths(view, paths_below))
    return _event("progress", entry.id, happened)


def _event(name: str, event_id: str, data: object) -> bytes:
    return b"".join(event(name, event_id, Answer((to_json(data),))).pieces())

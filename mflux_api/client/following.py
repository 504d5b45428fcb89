"""Following a job through its event stream: lines become events, and where to go on after the connection was cut."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mflux_api.client import answers as a
from mflux_api.client.calls import decode
from mflux_api.client.errors import UnexpectedAnswer
from mflux_api.jobs.progress import Progress

MAX_EVENT = 64 * 2**20
"""Bytes of one event: more than the largest image has."""
PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each further connection while none of them brings an event."""

_ENDS = ("complete", "failed", "cancelled")


class Following:
    """One follower of one job, over as many connections as it takes."""

    def __init__(self, base: str, job_id: str, *, previews: bool) -> None:
        self.job_id = job_id
        self.ended = False
        self._base = base
        self._previews = previews
        self._last_id = ""
        self._failures = 0
        self._start()

    def _reset(self) -> None:
        self._event, self._data, self._size = "", list[str](), 0
        self._id: str | None = None

    def _start(self) -> None:
        self._reset()
        self._rest = list[bytes]()

    def params(self) -> Mapping[str, str]:
        """Return the query of the next connection."""
        return {"images": "url"} | ({"previews": "jpeg"} if self._previews else {})

    def headers(self) -> Mapping[str, str]:
        """Return the headers of the next connection."""
        self._start()
        return {"Accept": "text/event-stream"} | ({"Last-Event-ID": self._last_id} if self._last_id else {})

    def pause(self) -> float | None:
        """Return how long to wait before the next connection; ``None``: it is not worth it."""
        self._failures += 1
        return PAUSES[self._failures - 1] if self._failures <= len(PAUSES) else None

    def feed(self, data: bytes) -> Iterator[a.Event]:
        """Take bytes of the stream; yields the events that they end.

        Raises:
            UnexpectedAnswer: it is not a stream of such a server.
        """
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole, self._rest = b"".join((*self._rest, line)), []
            yield from self._line(whole.removesuffix(b"\r").decode("utf-8", "replace"))
        self._rest.append(rest)
        self._size += len(rest)
        if self._size > MAX_EVENT:
            raise UnexpectedAnswer(self._base)

    def _line(self, line: str) -> Iterator[a.Event]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if (event := self._finish()) is not None:
                yield event
        elif name == "event":
            self._event = value
        elif name == "id":
            self._id = value
        elif name == "data":
            self._size += len(value)
            self._data.append(value)

    def _finish(self) -> a.Event | None:
        name, data, event_id = self._event, "\n".join(self._data), self._id
        self._reset()
        if not data:
            return None
        event = self._read(name, data)
        self._last_id = self._last_id if event_id is None else event_id
        if event is not None:
            self._failures = 0
        return event

    def _read(self, name: str, data: str) -> a.Event | None:
        kinds: Mapping[str, Any] = {"progress": Progress, "partial_image": a.PartialImage}
        try:
            if name in _ENDS:
                self.ended = True
                return a.Finished(job=decode(data, a.Job))
            event: a.Event | None = decode(data, kinds[name]) if name in kinds else None
        except msgspec.DecodeError:
            if name in _ENDS:
                raise UnexpectedAnswer(self._base) from None
            # Of a newer server, such as a stage that is not known here; the next one tells more.
            return None
        return event

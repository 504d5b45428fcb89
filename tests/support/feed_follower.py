"""A client that follows the stream of all of a caller's jobs."""

from __future__ import annotations

import trio

from tests.support.http_server import connect
from tests.support.scripted_api import Api, Event, parsed


class Follower:
    """A client that reads until it has seen so many ends."""

    def __init__(self, api: Api, headers: dict[str, str] | None = None, last: str | None = None) -> None:
        self._api = api
        self._headers = {**(headers or {}), **({"Last-Event-ID": last} if last else {})}
        self.events: list[Event] = []

    async def read(self, ends: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        # HTTP/1.0, whose bodies come as they are.
        lines = ["GET /api/v1/events HTTP/1.0", "Host: localhost", *(f"{k}: {v}" for k, v in self._headers.items())]
        async with connect(self._api.port) as client:
            await client.stream.send_all("\r\n".join([*lines, "", ""]).encode())
            text, started = b"", False
            while sum(each.name in ("complete", "cancelled", "failed") for each in self.events) < ends:
                text += await client.stream.receive_some(65536)
                head, _, body = text.partition(b"\r\n\r\n")
                assert b" 200 " in head
                self.events = parsed(body[: body.rfind(b"\n\n") + 2])
                if self.events and not started:
                    started = True
                    task_status.started()

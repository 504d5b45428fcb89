"""Counters of this process. Lossy by contract: an actor that counts never waits."""

import time
from collections import Counter
from typing import NoReturn, assert_never

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Mailbox
from mflux_api.supervisor import Started


class Stats:
    """Adds up what it is told."""

    def __init__(self, mailbox: Mailbox[m.StatsMessage]) -> None:
        self._mailbox = mailbox
        self._started = time.monotonic()

    async def run(self, status: Started) -> NoReturn:
        """Serve the mailbox until cancelled."""
        counts: Counter[str] = Counter()
        status.started()
        while True:
            message = await self._mailbox.receive()
            match message:
                case m.Count():
                    counts[message.name] += message.amount
                case m.GetCounters():
                    uptime = time.monotonic() - self._started
                    message.reply.ok(m.Counters(uptime_seconds=uptime, counts=dict(counts)))
                case _:
                    assert_never(message)

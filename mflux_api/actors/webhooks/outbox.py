"""What is still to be delivered, by receiver: which delivery may begin now, and when the next one is due."""

import heapq
import math
from collections import Counter
from datetime import datetime
from typing import Final

import attrs

from mflux_api.jobs.job import Job
from mflux_api.jobs.webhook import is_due

AT_A_TIME: Final = 16
"""Deliveries under way."""
AT_A_TIME_PER_HOST: Final = 2
"""A receiver that is slow holds up what goes to it, and nothing else."""
AT_A_TIME_PER_OWNER: Final = 4
"""One caller may have any number of slow receivers."""


@attrs.frozen(kw_only=True)
class Entry:
    """One delivery that waits."""

    job_id: str
    owner: str
    host: str
    due: datetime

    @classmethod
    def of(cls, job: Job, host: str) -> "Entry | None":
        """Return the entry of a job; ``None`` for one whose webhook is not to be delivered."""
        if job.delivery is None or job.delivery.due is None:
            return None
        return cls(job_id=job.id, owner=job.owner, host=host, due=job.delivery.due)


class Outbox:
    """The deliveries that wait and those under way; each job is in it once."""

    def __init__(self) -> None:
        self._waiting: dict[str, Entry] = {}
        # One line for each caller and receiver: none of them hides another.
        self._lines: dict[tuple[str, str], list[tuple[datetime, str]]] = {}
        self._under_way: dict[str, Entry] = {}
        self._hosts: Counter[str] = Counter()
        self._owners: Counter[str] = Counter()

    def add(self, entry: Entry) -> None:
        """Add what is to be delivered; nothing to do where it is known."""
        if entry.job_id in self._waiting or entry.job_id in self._under_way:
            return
        self._waiting[entry.job_id] = entry
        heapq.heappush(self._lines.setdefault((entry.owner, entry.host), []), (entry.due, entry.job_id))

    def begin(self, now: datetime) -> Entry | None:
        """Take out the delivery that has been due for longest and has a place; ``None`` where there is none."""
        if len(self._under_way) >= AT_A_TIME:
            return None
        entry = self._first()
        if entry is None or not is_due(entry.due, now):
            return None
        line = entry.owner, entry.host
        heapq.heappop(self._lines[line])
        if not self._lines[line]:
            del self._lines[line]
        self._under_way[entry.job_id] = self._waiting.pop(entry.job_id)
        self._hosts[entry.host] += 1
        self._owners[entry.owner] += 1
        return entry

    def end(self, entry: Entry) -> None:
        """Free the place of a delivery."""
        del self._under_way[entry.job_id]
        for counter, name in ((self._hosts, entry.host), (self._owners, entry.owner)):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]

    def seconds_to_next(self, now: datetime) -> float:
        """Return how long until something is due that would have a place; infinite where there is nothing."""
        if len(self._under_way) >= AT_A_TIME:
            return math.inf
        entry = self._first()
        if entry is None:
            return math.inf
        return 0.0 if is_due(entry.due, now) else (entry.due - now).total_seconds()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._under_way

    def _first(self) -> Entry | None:
        """Return what is due first of all that would have a place."""
        firsts = (
            self._waiting[line[0][1]]
            for (owner, host), line in self._lines.items()
            if self._hosts[host] < AT_A_TIME_PER_HOST and self._owners[owner] < AT_A_TIME_PER_OWNER
        )
        return min(firsts, key=lambda each: (each.due, each.job_id), default=None)

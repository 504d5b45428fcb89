"""The feed of all jobs: the newest events of everyone's, and the followers, each of whom gets its own jobs' alone.

A follower that cannot take the end of a job is closed: it comes back with the id of its last event, and what has
happened since is in the log, or it is told that more has happened than is kept.
"""

from bisect import bisect_right
from collections import deque
from typing import Final

import attrs
import trio

from mflux_api.access.visibility import Visibility
from mflux_api.actors.messages.event_hub import Feed, FeedEntry
from mflux_api.jobs.progress import Finished, JobEvent, Progress

BUFFER: Final = 128
KEPT: Final = 512
"""Events that are kept for those who come back; they hold no pixels, and an end has its prompt."""
MAX_DIGITS: Final = 15
"""Digits in the number of an id that is looked at: a client may send anything, and Python refuses thousands."""


@attrs.frozen(eq=False)
class _Follower:
    channel: trio.MemorySendChannel[FeedEntry]
    visible: Visibility

    @property
    def gone(self) -> bool:
        return self.channel.statistics().open_receive_channels == 0


class EventFeed:
    """The feed from one start of the event hub to the next; its name is part of every event id."""

    def __init__(self, name: str, kept: int = KEPT) -> None:
        self._name = name
        self._count = 0
        self._kept = deque[FeedEntry](maxlen=kept)
        self._followers: list[_Follower] = []

    def publish(self, owner: str, event: JobEvent) -> None:
        """Tell the owner's followers, and keep it; a preview is neither."""
        if isinstance(event, Progress) and event.preview is not None:
            return
        self._count += 1
        entry = FeedEntry(id=f"{self._name}-{self._count}", number=self._count, owner=owner, event=event)
        self._kept.append(entry)
        self._followers = [each for each in self._followers if _deliver(each, entry)]

    def follow(self, visible: Visibility, last_event_id: str | None) -> Feed:
        """Open a follower's channel, from the present or from behind the last event that it had."""
        send, receive = trio.open_memory_channel[FeedEntry](BUFFER)
        self._followers = [each for each in self._followers if not each.gone]
        self._followers.append(_Follower(send, visible))
        newest = f"{self._name}-{self._count}"
        if last_event_id is None:
            return Feed(newest=newest, backlog=(), complete=True, channel=receive)
        number = number_in(last_event_id, self._name)
        if number is None or not self._has_all_after(number):
            return Feed(newest=newest, backlog=(), complete=False, channel=receive)
        start = bisect_right(self._kept, number, key=_number)
        backlog = tuple(entry for entry in list(self._kept)[start:] if visible.shows(entry.owner))
        return Feed(newest=newest, backlog=backlog, complete=True, channel=receive)

    def followers(self) -> int:
        """Return how many follow now."""
        return sum(not each.gone for each in self._followers)

    def close(self) -> None:
        """End every stream."""
        for each in self._followers:
            each.channel.close()
        self._followers.clear()

    def _has_all_after(self, number: int) -> bool:
        if number > self._count:
            return False
        return number == self._count or (bool(self._kept) and self._kept[0].number <= number + 1)


def number_in(event_id: str, name: str) -> int | None:
    """Return the number in an event's id; ``None`` where it is none of that name."""
    named, _, digits = event_id.rpartition("-")
    if named != name or not digits.isascii() or not digits.isdigit() or len(digits) > MAX_DIGITS:
        return None
    return int(digits)


def _number(entry: FeedEntry) -> int:
    return entry.number


def _deliver(follower: _Follower, entry: FeedEntry) -> bool:
    """Send without waiting; return whether the follower is still one."""
    if follower.gone:
        follower.channel.close()
        return False
    if not follower.visible.shows(entry.owner):
        return True
    statistics = follower.channel.statistics()
    room = statistics.max_buffer_size - statistics.current_buffer_used
    ends = isinstance(entry.event, Finished)
    # The last places are for ends: who is slow loses progress first.
    if room > statistics.max_buffer_size // 4 or (ends and room > 0):
        follower.channel.send_nowait(entry)
    elif ends:
        follower.channel.close()
        return False
    return True

"""The event hub: a log of events per job, and its followers.

The publisher never waits. A subscriber that keeps up gets every event; a slow one loses progress events, never the
terminal one, for which a place in its channel is kept free. The log holds no pixels.
"""

import secrets
from bisect import bisect_right
from collections import OrderedDict
from typing import NoReturn, assert_never

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.event_feed import EventFeed, number_in
from mflux_api.actors.mailbox import Mailbox
from mflux_api.errors import ShuttingDown
from mflux_api.jobs.progress import Finished, JobEvent, PartialImage, Progress
from mflux_api.supervisor import Started

SUBSCRIBER_BUFFER = 32
FINISHED_LOGS = 256
"""Logs of finished jobs that are kept for late followers."""


@attrs.define(eq=False)
class _Follower:
    """A subscriber's end of its channel, and which of what it was sent holds pixels in full size."""

    channel: trio.MemorySendChannel[m.LogEntry]
    sent: int = 0
    partial_images: list[int] = attrs.field(factory=list)
    """The numbers of those that may still wait in the channel."""

    @property
    def gone(self) -> bool:
        """Whether it follows no more."""
        return self.channel.statistics().open_receive_channels == 0

    def deliver(self, entry: m.LogEntry) -> bool:
        """Send without waiting; return ``False`` when the follower is gone.

        The last place is the terminal event's. Partial images are few in the channel: they have megabytes.
        """
        statistics = self.channel.statistics()
        if statistics.open_receive_channels == 0:
            self.channel.close()
            return False
        if isinstance(entry.event, Finished):
            self.channel.send_nowait(entry)
            return True
        if statistics.current_buffer_used >= statistics.max_buffer_size - 1:
            return True
        if isinstance(entry.event, PartialImage):
            received = self.sent - statistics.current_buffer_used
            self.partial_images = [number for number in self.partial_images if number > received]
            if len(self.partial_images) >= m.PARTIAL_IMAGES_WAITING:
                return True
            self.partial_images.append(self.sent + 1)
        self.channel.send_nowait(entry)
        self.sent += 1
        return True


@attrs.define
class _Log:
    entries: list[m.LogEntry] = attrs.field(factory=list)
    numbers: list[int] = attrs.field(factory=list)
    """The number in the id of each progress event in ``entries``; those between were replaced by the next one."""
    count: int = 0
    """Progress events that there were so far."""
    subscribers: list[_Follower] = attrs.field(factory=list)
    preview_subscribers: list[_Follower] = attrs.field(factory=list)
    """Those subscribers who also take previews."""
    partial_subscribers: list[_Follower] = attrs.field(factory=list)
    """Those subscribers who also take partial images."""
    finished: bool = False
    highest: float = 0.0


class EventHub:
    """Keeps the logs and fans out."""

    def __init__(self, mailbox: Mailbox[m.HubMessage]) -> None:
        self._mailbox = mailbox

    async def run(self, status: Started) -> NoReturn:
        """Serve the mailbox until cancelled; then every follower's channel is closed."""
        state = HubState(secrets.token_hex(4))
        try:
            status.started()
            while True:
                message = await self._mailbox.receive()
                match message:
                    case m.Publish():
                        state.publish(message.job_id, message.event, message.owner)
                    case m.Show():
                        state.show(message.image)
                    case m.Subscribe() if state.over(message.job_id):
                        message.reply.fail(ShuttingDown("The service is shutting down; follow the job when it is back"))
                    case m.Subscribe():
                        subscription = state.subscribe(message.job_id, message.last_event_id)
                        state.watch(message.job_id, previews=message.previews, partial_images=message.partial_images)
                        if not message.reply.ok(subscription):
                            # The asker is gone, and would never close it.
                            subscription.channel.close()
                    case m.FollowAll() if state.streams_ended:
                        message.reply.fail(ShuttingDown("The service is shutting down; follow again when it is back"))
                    case m.FollowAll():
                        feed = state.feed.follow(message.visible, message.last_event_id)
                        if not message.reply.ok(feed):
                            feed.channel.close()
                    case m.OpenLogs():
                        message.reply.ok(state.open_logs())
                    case m.CountFollowers():
                        message.reply.ok(state.followers())
                    case m.CloseLog():
                        state.close_log(message.job_id)
                    case m.EndStreams():
                        state.end_streams()
                    case _:
                        assert_never(message)
        finally:
            state.close()


class HubState:
    """The hub's state from one start to the next; its name is part of every event id."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logs: OrderedDict[str, _Log] = OrderedDict()
        self._finished: OrderedDict[str, None] = OrderedDict()
        self.streams_ended = False
        """Whether nothing more will happen to any job here."""
        self.feed = EventFeed(f"{name}-all")

    def publish(self, job_id: str, event: JobEvent, owner: str = "") -> None:
        """Log an event and send it to the job's followers; the terminal one ends their streams."""
        log = self._logs.setdefault(job_id, _Log())
        if log.finished:
            return
        if isinstance(event, Progress):
            # A restarted scheduler counts from nothing again; what a follower sees never decreases.
            log.highest = max(log.highest, event.progress)
            event = attrs.evolve(event, progress=log.highest)
            if event.preview is not None:
                self._show_preview(log, event)
                return
        self.feed.publish(owner, event)
        entry = self._append(log, event)
        terminal = isinstance(event, Finished)
        log.subscribers = [each for each in log.subscribers if each.deliver(entry)]
        if terminal:
            log.finished = True
            _end_streams(log)
            self._retire(job_id)

    def _append(self, log: _Log, event: JobEvent) -> m.LogEntry:
        """Log an event under an id of its own; what only says how much has arrived takes the place of the last such."""
        if isinstance(event, Finished):
            entry = m.LogEntry(id=event.event_id, event=event)
        else:
            if log.entries and event.supersedes(log.entries[-1].event):
                log.entries.pop()
                log.numbers.pop()
            log.count += 1
            log.numbers.append(log.count)
            entry = m.LogEntry(id=f"{self._name}-{log.count}", event=event)
        log.entries.append(entry)
        return entry

    def subscribe(self, job_id: str, last_event_id: str | None) -> m.Subscription:
        """Open a stream of a job's events, from the present or from the event after one that is known."""
        send, receive = trio.open_memory_channel[m.LogEntry](SUBSCRIBER_BUFFER)
        log = self._logs.get(job_id)
        if log is None:
            send.close()
            return m.Subscription(logged=False, backlog=(), latest=None, channel=receive)
        if log.finished:
            send.close()
        else:
            log.subscribers = [each for each in log.subscribers if not each.gone]
            log.subscribers.append(_Follower(send))
        if last_event_id is None:
            latest, backlog = _latest(log)
            return m.Subscription(logged=True, backlog=backlog, latest=latest, channel=receive)
        return m.Subscription(logged=True, backlog=self._after(log, last_event_id), latest=None, channel=receive)

    def watch(self, job_id: str, *, previews: bool, partial_images: bool) -> None:
        """Send previews, partial images or both to the job's newest subscriber."""
        log = self._logs.get(job_id)
        if log is None or not log.subscribers:
            return
        if previews:
            log.preview_subscribers = [each for each in log.preview_subscribers if not each.gone]
            log.preview_subscribers.append(log.subscribers[-1])
        if partial_images:
            log.partial_subscribers = [each for each in log.partial_subscribers if not each.gone]
            log.partial_subscribers.append(log.subscribers[-1])

    # What shows pixels is not kept: it says where the log is, and resuming after it resumes there.

    def _show_preview(self, log: _Log, event: Progress) -> None:
        if log.entries:
            entry = m.LogEntry(id=log.entries[-1].id, event=event)
            log.preview_subscribers = [each for each in log.preview_subscribers if each.deliver(entry)]

    def show(self, image: PartialImage) -> None:
        """Send a partial image to those who asked for them and keep up: megabytes of it must not wait."""
        log = self._logs.get(image.id)
        if log is None or log.finished or not log.entries:
            return
        entry = m.LogEntry(id=log.entries[-1].id, event=image)
        log.partial_subscribers = [each for each in log.partial_subscribers if each.deliver(entry)]

    def open_logs(self) -> tuple[str, ...]:
        """Return the jobs whose log has no terminal event."""
        return tuple(job_id for job_id, log in self._logs.items() if not log.finished)

    def followers(self) -> int:
        """Return how many streams are followed now."""
        following = [each for log in self._logs.values() for each in log.subscribers if not each.gone]
        return self.feed.followers() + len(following)

    def close_log(self, job_id: str) -> None:
        """End the job's streams and forget its log."""
        log = self._logs.pop(job_id, None)
        if log is not None:
            _end_streams(log)
            self._finished.pop(job_id, None)

    def over(self, job_id: str) -> bool:
        """Whether the job will have no further event here, and no end."""
        log = self._logs.get(job_id)
        return self.streams_ended and log is not None and not log.finished

    def end_streams(self) -> None:
        """End the streams of unfinished jobs, and open no new ones."""
        self.streams_ended = True
        self.close()

    def close(self) -> None:
        """End every stream."""
        self.feed.close()
        for log in self._logs.values():
            _end_streams(log)

    def _after(self, log: _Log, last_event_id: str) -> tuple[m.LogEntry, ...]:
        """Return what comes after an event, which may have been replaced since; all if there was none of that id."""
        number = number_in(last_event_id, self._name)
        if number is None or not 1 <= number <= log.count:
            return tuple(log.entries)
        return tuple(log.entries[bisect_right(log.numbers, number) :])

    def _retire(self, job_id: str) -> None:
        self._finished[job_id] = None
        while len(self._finished) > FINISHED_LOGS:
            oldest, _ = self._finished.popitem(last=False)
            del self._logs[oldest]


def _end_streams(log: _Log) -> None:
    for each in log.subscribers:
        each.channel.close()
    log.subscribers.clear()
    log.preview_subscribers.clear()
    log.partial_subscribers.clear()


def _latest(log: _Log) -> tuple[m.LogEntry | None, tuple[m.LogEntry, ...]]:
    """Return the newest state, and the terminal event that may follow it."""
    if not log.finished:
        return (log.entries[-1] if log.entries else None), ()
    # The state before the terminal event: a client that is cut off between the two still gets the terminal one.
    return (log.entries[-2] if len(log.entries) > 1 else None), (log.entries[-1],)

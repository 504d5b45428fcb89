"""Named for what a follower would see if `event_hub.py` did not keep its word."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from mflux_api.actors import event_hub
from mflux_api.actors import messages as m
from mflux_api.actors.event_hub import FINISHED_LOGS, SUBSCRIBER_BUFFER, EventHub, _Log
from mflux_api.actors.mailbox import Address, Mailbox
from mflux_api.jobs import job as jobs
from mflux_api.jobs.job import Job, Stage, Status
from mflux_api.jobs.progress import Finished, JobEvent, Progress
from tests.support.crew import NOW, a_job, checkpoints, run_mocked, running


class _Hub:
    """A hub and its clients."""

    def __init__(self) -> None:
        self.mailbox: Mailbox[m.HubMessage] = Mailbox(m.EVENT_HUB, work_capacity=4096)
        self.address = Address(self.mailbox, sender=m.GATEWAY, asks=m.ASK_GRAPH)

    def publish(self, job: Job, *events: JobEvent) -> None:
        for event in events:
            self.address.tell_nowait(m.Publish(job_id=job.id, event=event))

    async def subscribe(self, job: Job, last: str | None = None, *, previews: bool = False) -> m.Subscription:
        return await self.address.ask(m.Subscribe(job_id=job.id, last_event_id=last, previews=previews))

    async def open_logs(self) -> tuple[str, ...]:
        return await self.address.ask(m.OpenLogs())


@asynccontextmanager
async def a_hub() -> AsyncIterator[_Hub]:
    hub = _Hub()
    async with running(EventHub(hub.mailbox).run):
        yield hub


def _progress(job: Job, *values: float) -> list[Progress]:
    return [
        Progress(id=job.id, status=Status.GENERATING, stage=Stage.DENOISING, progress=value, step=step)
        for step, value in enumerate(values, start=1)
    ]


def _end(job: Job) -> Finished:
    return Finished(job=jobs.cancel(job, NOW))


async def _rest(subscription: m.Subscription) -> list[m.LogEntry]:
    """What is missed, then everything until the hub closes the channel."""
    with subscription.channel:
        return [*subscription.backlog, *[logged async for logged in subscription.channel]]


def _values(entries: Iterable[m.LogEntry]) -> list[float | None]:
    """The progress of each event; None for the terminal one."""
    return [entry.event.progress if isinstance(entry.event, Progress) else None for entry in entries]


async def test_previews_reach_who_asked_and_stay_in_no_log() -> None:
    job = a_job()
    one, two = _progress(job, 0.1, 0.2)
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.0))
        plain, shown = await hub.subscribe(job), await hub.subscribe(job, previews=True)
        hub.publish(job, one, attrs.evolve(one, preview="a"), two, attrs.evolve(two, preview="b"), _end(job))
        late = await hub.subscribe(job, "unknown", previews=True)
        seen = {name: await _rest(each) for name, each in (("plain", plain), ("shown", shown), ("late", late))}
    images = {
        name: [entry.event.preview for entry in entries if isinstance(entry.event, Progress)]
        for name, entries in seen.items()
    }
    assert images == {"plain": [None, None], "shown": [None, "a", None, "b"], "late": [None, None, None]}
    # A preview says where the log is: a follower that resumes after it misses nothing.
    assert [entry.id for entry in seen["shown"]][1] == seen["plain"][0].id


async def test_slow_follower_of_previews_still_gets_the_end() -> None:
    job = a_job()
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.0))
        subscription = await hub.subscribe(job, previews=True)
        (step,) = _progress(job, 0.5)
        hub.publish(job, *[attrs.evolve(step, preview="a")] * (3 * SUBSCRIBER_BUFFER), _end(job))
        assert isinstance((await _rest(subscription))[-1].event, Finished)


async def test_preview_after_the_streams_were_ended_is_sent_to_no_follower() -> None:
    """A drain ends the streams while the last job still runs."""
    job = a_job()
    (step,) = _progress(job, 0.5)
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.0))
        subscription = await hub.subscribe(job, previews=True)
        await hub.address.tell(m.EndStreams())
        hub.publish(job, attrs.evolve(step, preview="a"))
        assert await _rest(subscription) == []
        assert await hub.open_logs() == (job.id,)


async def test_ids_name_the_boot_and_count_the_jobs_events() -> None:
    job, other = a_job(), a_job()
    boots = set()
    for _ in range(2):
        async with a_hub() as hub:
            hub.publish(job, *_progress(job, 0.1, 0.2))
            hub.publish(other, *_progress(other, 0.5))
            hub.publish(job, _end(job))
            ids = [entry.id for entry in await _rest(await hub.subscribe(job, "unknown"))]
            boot = ids[0].partition("-")[0]
            # The terminal event's is made of the job alone, and is the same at every boot.
            assert ids == [f"{boot}-1", f"{boot}-2", f"{job.id}-cancelled"]
            boots.add(boot)
    assert len(boots) == 2


async def test_a_new_follower_gets_the_present_with_the_newest_id_and_then_what_follows() -> None:
    job = a_job()
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.1, 0.2))
        subscription = await hub.subscribe(job)
        assert subscription.latest is not None
        assert subscription.latest.id.endswith("-2")
        assert _values([subscription.latest]) == [0.2]
        assert subscription.backlog == ()
        hub.publish(job, *_progress(job, 0.3), _end(job))
        assert _values(await _rest(subscription)) == [0.3, None]


@pytest.mark.parametrize(("last", "backlog"), [(1, [0.2, 0.3]), (2, [0.3]), (3, []), (None, [0.1, 0.2, 0.3])])
async def test_a_returning_follower_gets_what_comes_after_its_last_id_or_everything(
    last: int | None, backlog: list[float]
) -> None:
    job = a_job()
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.1, 0.2, 0.3))
        present = (await hub.subscribe(job)).latest
        assert present is not None
        boot = present.id.partition("-")[0]
        subscription = await hub.subscribe(job, "0000-2" if last is None else f"{boot}-{last}")
        assert _values(subscription.backlog) == backlog
        assert subscription.latest is None
        hub.publish(job, _end(job))
        assert _values(await _rest(subscription)) == [*backlog, None]


async def test_a_finished_job_is_the_present_and_then_its_end() -> None:
    job, sudden = a_job(), a_job()
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.1, 0.2), _end(job))
        hub.publish(sudden, _end(sudden))
        subscription = await hub.subscribe(job)
        assert subscription.latest is not None
        assert _values([subscription.latest]) == [0.2]
        assert _values(await _rest(subscription)) == [None]
        subscription = await hub.subscribe(sudden)
        assert subscription.latest is None
        assert _values(await _rest(subscription)) == [None]


async def test_a_job_without_a_log_has_no_past_and_a_closed_channel() -> None:
    async with a_hub() as hub:
        subscription = await hub.subscribe(a_job())
        assert not subscription.logged
        assert subscription.latest is None
        assert await _rest(subscription) == []


def _transfer(job: Job, done: int) -> Progress:
    return Progress(id=job.id, status=Status.QUEUED, stage=Stage.DOWNLOADING, progress=0.0, bytes_done=done)


async def test_log_of_a_job_that_waits_for_a_download_does_not_grow_with_the_wait() -> None:
    job = a_job()
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.0), *[_transfer(job, done) for done in range(2_000)])
        log = (await hub.subscribe(job, "unknown")).backlog
        assert [entry.event for entry in log[1:]] == [_transfer(job, 1_999)]


@pytest.mark.parametrize(("last", "after"), [(1, [29, None]), (2, [29, None]), (30, [29, None]), (31, [None])])
async def test_follower_whose_event_was_replaced_meanwhile_goes_on_after_it(last: int, after: list[int | None]) -> None:
    job = a_job()
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.0))
        follower = await hub.subscribe(job)
        hub.publish(job, *[_transfer(job, done) for done in range(30)], *_progress(job, 0.5))
        seen = [await follower.channel.receive() for _ in range(31)]
        assert [entry.event for entry in seen[:-1]] == [_transfer(job, done) for done in range(30)]
        boot = seen[0].id.partition("-")[0]
        backlog = (await hub.subscribe(job, f"{boot}-{last}")).backlog
        assert [entry.event.bytes_done for entry in backlog if isinstance(entry.event, Progress)] == after


@pytest.mark.parametrize(
    "last", ["", "-", "0000", "0000-1", "{boot}-0", "{boot}-3", "{boot}-x", "{boot}-²", "{boot}-" + "9" * 5000]
)
async def test_id_that_was_never_given_is_unknown_whatever_it_is(last: str) -> None:
    job = a_job()
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.1, 0.2))
        boot = (await hub.subscribe(job, "x")).backlog[0].id.partition("-")[0]
        assert _values((await hub.subscribe(job, last.format(boot=boot))).backlog) == [0.1, 0.2]


async def test_a_slow_follower_loses_progress_but_never_the_end_and_holds_no_other_up() -> None:
    job = a_job()
    values = [step / 1000 for step in range(1, 501)]
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.0))
        slow, fast = await hub.subscribe(job), await hub.subscribe(job)
        got: list[m.LogEntry] = []
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                got.extend(await _rest(fast))

            nursery.start_soon(follow)
            for progress in _progress(job, *values):
                hub.publish(job, progress)
                await wait_all_tasks_blocked()
            hub.publish(job, _end(job))
        assert _values(got) == [*values, None]
        late = await _rest(slow)
        assert len(late) == SUBSCRIBER_BUFFER
        assert late[-1] == got[-1]
        assert late == [entry for entry in got if entry in late]


async def test_progress_never_decreases_also_when_a_restarted_scheduler_counts_from_nothing() -> None:
    job = a_job()
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.0, 0.5, 0.0, 0.2, 0.6), _end(job))
        assert _values(await _rest(await hub.subscribe(job, "x"))) == [0.0, 0.5, 0.5, 0.5, 0.6, None]


async def test_nothing_comes_after_the_end() -> None:
    job = a_job()
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.1), _end(job), *_progress(job, 0.9), _end(job))
        assert _values(await _rest(await hub.subscribe(job, "x"))) == [0.1, None]


async def test_open_logs_are_those_of_jobs_without_an_end() -> None:
    job, done = a_job(), a_job()
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.1))
        hub.publish(done, *_progress(done, 0.1), _end(done))
        assert await hub.open_logs() == (job.id,)


async def test_only_so_many_finished_logs_are_kept_and_the_newest_stay() -> None:
    finished = [a_job() for _ in range(FINISHED_LOGS + 3)]
    unfinished = a_job()
    async with a_hub() as hub:
        hub.publish(unfinished, *_progress(unfinished, 0.1))
        for job in finished:
            hub.publish(job, _end(job))
        kept = [bool(await _rest(await hub.subscribe(job))) for job in finished]
        assert kept == [False] * 3 + [True] * FINISHED_LOGS
        assert await hub.open_logs() == (unfinished.id,)


async def test_the_end_of_the_hub_ends_every_stream() -> None:
    job = a_job()
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.1))
        followers = [await hub.subscribe(job) for _ in range(3)]
    for follower in followers:
        assert await _rest(follower) == []


async def test_followers_who_left_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that left before they had their subscription in hand."""
    logs: list[_Log] = []

    def new_log() -> _Log:
        logs.append(_Log())
        return logs[-1]

    monkeypatch.setattr(event_hub, "_Log", new_log)
    job = a_job()
    async with a_hub() as hub:
        hub.publish(job, *_progress(job, 0.1))
        for turns in range(60):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def follow() -> None:
                        with (await hub.subscribe(job)).channel as channel:
                            await channel.receive()

                    nursery.start_soon(follow)
                    await checkpoints(turns % 6)
                    scope.cancel()
            await wait_all_tasks_blocked()
            assert len(logs[0].subscribers) <= 1
        hub.publish(job, *_progress(job, 0.2))
        await wait_all_tasks_blocked()
        assert logs[0].subscribers == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.lists(st.integers(0, 13), max_size=5), st.integers(0, 13))
def test_a_stream_that_is_cut_anywhere_and_resumed_has_no_gap_and_no_double(
    length: int, cuts: list[int], before: int
) -> None:
    async def main() -> None:
        job = a_job()
        events: list[JobEvent] = [*_progress(job, *[step / 20 for step in range(1, length + 1)]), _end(job)]
        async with a_hub() as hub:
            hub.publish(job, *_progress(job, 0.0), *events[:before])
            remaining = iter(events[before:])
            seen: list[m.LogEntry] = []
            last = "unknown"
            for cut in [*cuts, None]:
                subscription = await hub.subscribe(job, last)
                for event in remaining:
                    hub.publish(job, event)
                    if cut is not None:
                        break
                await wait_all_tasks_blocked()
                with subscription.channel as channel:
                    future = [logged async for logged in channel] if cut is None else _queued(channel)
                seen.extend([*subscription.backlog, *future][:cut])
                last = seen[-1].id if seen else "unknown"
                if last.startswith(job.id):
                    break
            assert [entry.id.partition("-")[2] for entry in seen] == [*map(str, range(1, length + 2)), "cancelled"]

    run_mocked(main)


def _queued(channel: trio.MemoryReceiveChannel[m.LogEntry]) -> list[m.LogEntry]:
    queued: list[m.LogEntry] = []
    try:
        while True:
            queued.append(channel.receive_nowait())
    except (trio.WouldBlock, trio.EndOfChannel):
        return queued

"""The feed of all jobs: who sees what, what a slow follower loses, and where one who comes back goes on."""

from __future__ import annotations

from datetime import UTC, datetime

import attrs
import pytest
import trio

from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.actors.event_feed import BUFFER, EventFeed
from mflux_api.actors.messages import Feed
from mflux_api.jobs.job import Job, Stage, Status
from mflux_api.jobs.progress import Finished, JobEvent, Progress
from tests.support.harness import RESOLVED


def step(number: int, preview: str | None = None) -> Progress:
    return Progress(
        id=f"job{number}", status=Status.GENERATING, stage=Stage.DENOISING, progress=0.5, step=number, preview=preview
    )


def end(number: int, owner: str = "ana") -> Finished:
    now = datetime.now(UTC)
    job = Job(id=f"job{number}", request=RESOLVED, created_at=now, status=Status.COMPLETED, completed_at=now)
    return Finished(job=attrs.evolve(job, owner=owner))


def received(feed: Feed) -> list[JobEvent]:
    events = list[JobEvent]()
    while True:
        try:
            events.append(feed.channel.receive_nowait().event)
        except (trio.WouldBlock, trio.EndOfChannel):
            return events


def test_each_follower_gets_its_own_jobs_alone() -> None:
    feed = EventFeed("boot")
    everyone, ana = feed.follow(ALL_JOBS, None), feed.follow(Visibility(only="ana"), None)
    feed.publish("ana", step(1))
    feed.publish("bob", step(2))
    feed.publish("ana", end(1))
    assert [event.id if isinstance(event, Progress) else event.job.id for event in received(everyone)] == [
        "job1",
        "job2",
        "job1",
    ]
    assert [type(event) for event in received(ana)] == [Progress, Finished]


def test_previews_are_not_for_a_feed() -> None:
    feed = EventFeed("boot")
    follower = feed.follow(ALL_JOBS, None)
    feed.publish("ana", step(1, preview="…"))
    assert received(follower) == []
    assert feed.follow(ALL_JOBS, None).newest == "boot-0"


def test_slow_follower_loses_progress_and_no_end() -> None:
    feed = EventFeed("boot")
    follower = feed.follow(ALL_JOBS, None)
    for number in range(BUFFER):
        feed.publish("ana", step(number))
    ends = [end(number) for number in range(BUFFER // 4)]
    for each in ends:
        feed.publish("ana", each)
    events = received(follower)
    assert [event for event in events if isinstance(event, Finished)] == ends
    assert len(events) <= BUFFER


def test_follower_that_cannot_take_an_end_is_closed_and_goes_on_where_it_was() -> None:
    feed = EventFeed("boot", kept=4 * BUFFER)
    follower = feed.follow(ALL_JOBS, None)
    for number in range(BUFFER + 10):
        feed.publish("ana", end(number))
    assert len(received(follower)) == BUFFER
    with pytest.raises(trio.EndOfChannel):
        follower.channel.receive_nowait()
    back = feed.follow(ALL_JOBS, f"boot-{BUFFER}")
    assert back.complete
    assert [entry.id for entry in back.backlog] == [f"boot-{number}" for number in range(BUFFER + 1, BUFFER + 11)]


@pytest.mark.parametrize("last", ["", "x", "other-3", "boot-99", "boot--1", "boot-" + "9" * 5000, "boot-1"])
def test_follower_of_events_that_are_not_kept_is_told(last: str) -> None:
    feed = EventFeed("boot", kept=3)
    for number in range(6):
        feed.publish("ana", step(number))
    back = feed.follow(ALL_JOBS, last)
    assert (back.complete, back.backlog, back.newest) == (False, (), "boot-6")


@pytest.mark.parametrize(("last", "left"), [("boot-6", 0), ("boot-5", 1), ("boot-3", 3)])
def test_follower_of_events_that_are_kept_misses_none(last: str, left: int) -> None:
    feed = EventFeed("boot", kept=3)
    for number in range(6):
        feed.publish("ana" if number % 2 else "bob", step(number))
    back = feed.follow(ALL_JOBS, last)
    assert (back.complete, len(back.backlog)) == (True, left)
    hidden = feed.follow(Visibility(only="eve"), last)
    assert (hidden.complete, hidden.backlog) == (True, ())


def test_follower_that_left_is_forgotten_and_the_end_closes_all() -> None:
    feed = EventFeed("boot")
    gone, stays = feed.follow(ALL_JOBS, None), feed.follow(ALL_JOBS, None)
    gone.channel.close()
    feed.publish("ana", step(1))
    feed.close()
    assert received(stays) == [step(1)]
    with pytest.raises(trio.EndOfChannel):
        stays.channel.receive_nowait()

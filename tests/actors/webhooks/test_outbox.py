"""Which delivery begins next: the one that is due first, unless its receiver or its caller has its share."""

from __future__ import annotations

import math
from datetime import timedelta

from mflux_api.actors.webhooks.outbox import AT_A_TIME, AT_A_TIME_PER_HOST, AT_A_TIME_PER_OWNER, Entry, Outbox
from mflux_api.jobs.webhook import LONGEST_DELAY
from tests.support.stored_jobs import NOW


def entry(name: str, *, host: str = "", owner: str = "", due: float = 0.0) -> Entry:
    return Entry(job_id=name, host=host or name, owner=owner or name, due=NOW + timedelta(seconds=due))


def outbox(*entries: Entry) -> Outbox:
    made = Outbox()
    for each in entries:
        made.add(each)
    return made


def begun(box: Outbox, after: float = 0.0) -> list[str]:
    names = []
    while (each := box.begin(NOW + timedelta(seconds=after))) is not None:
        names.append(each.job_id)
    return names


def test_what_is_due_begins_in_its_order() -> None:
    box = outbox(entry("c", due=3), entry("a", due=1), entry("b", due=2))
    assert begun(box, 0.5) == []
    assert box.seconds_to_next(NOW) == 1
    assert begun(box, 2) == ["a", "b"]
    assert box.seconds_to_next(NOW + timedelta(hours=1)) == 0


def test_clock_that_is_set_back_makes_nothing_wait_longer_than_the_longest_wait() -> None:
    box = outbox(entry("a", due=LONGEST_DELAY.total_seconds()))
    assert begun(box) == []
    assert box.seconds_to_next(NOW) == LONGEST_DELAY.total_seconds()
    assert box.seconds_to_next(NOW - timedelta(days=300)) == 0
    assert begun(box, -300 * 86400) == ["a"]


def test_each_job_is_in_it_once() -> None:
    box = outbox(entry("a"), entry("a", due=-5))
    assert begun(box) == ["a"]
    box.add(entry("a"))
    assert begun(box) == []


def test_slow_receiver_holds_up_no_other() -> None:
    slow = [entry(f"slow{n}", host="slow", due=-100 + n) for n in range(50)]
    box = outbox(*slow, entry("quick"))
    assert begun(box) == [*(f"slow{n}" for n in range(AT_A_TIME_PER_HOST)), "quick"]
    assert box.seconds_to_next(NOW) == math.inf
    box.end(slow[1])
    assert begun(box) == ["slow2"]


def test_callers_slow_receivers_hold_up_no_other_callers() -> None:
    mine = [entry(f"mine{n}", owner="me", due=-100 + n) for n in range(50)]
    box = outbox(*mine, entry("yours"))
    assert begun(box) == [*(f"mine{n}" for n in range(AT_A_TIME_PER_OWNER)), "yours"]


def test_one_caller_hides_no_other_of_the_same_receiver() -> None:
    mine = [entry(f"mine{n}", owner="me", host="shared" if n > 3 else "", due=n - 100) for n in range(8)]
    box = outbox(*mine, entry("yours", host="shared"))
    assert begun(box) == ["mine0", "mine1", "mine2", "mine3", "yours"]


def test_no_more_are_under_way_than_there_are_places() -> None:
    box = outbox(*(entry(f"{n:03}") for n in range(100)))
    assert len(begun(box)) == AT_A_TIME
    assert not box.idle
    assert box.seconds_to_next(NOW) == math.inf
    for n in range(AT_A_TIME):
        box.end(entry(f"{n:03}"))
    assert box.idle

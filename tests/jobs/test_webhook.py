"""A delivery and its retries: when, how often, and when it is given up."""

import itertools
from datetime import timedelta

import attrs
import pytest

from mflux_api.jobs import job as jobs
from mflux_api.jobs.webhook import (
    LONGEST_DELAY,
    MAX_ERROR,
    Attempt,
    Delivery,
    DeliveryState,
    EndName,
    RetryPolicy,
    Webhook,
    after_attempt,
    first_delivery,
)
from tests.support.stored_jobs import NOW, completed, failed, queued

POLICY = RetryPolicy(max_attempts=5, max_age=timedelta(hours=1))
REFUSED = Attempt(error="the receiver answered 503")


def after(*attempts: Attempt, policy: RetryPolicy = POLICY, jitter: float = 1.0) -> Delivery:
    """Each attempt comes when it is due."""
    delivery = Delivery(due=NOW)
    for attempt in attempts:
        assert delivery.due is not None
        delivery = after_attempt(delivery, attempt, policy, ended=NOW, now=delivery.due, jitter=jitter)
    return delivery


def waits(count: int, **options: float) -> list[float]:
    dues = [after(*[REFUSED] * done, **options).due for done in range(count + 1)]  # type: ignore[arg-type]
    return [(late - early).total_seconds() for early, late in itertools.pairwise(dues) if early and late]


def test_waits_grow_by_a_factor_and_jitter_takes_up_to_half_of_each() -> None:
    assert waits(4) == [5, 20, 80, 320]
    assert waits(4, jitter=0.0) == [2.5, 10, 40, 160]


def test_waits_have_a_longest() -> None:
    patient = RetryPolicy(max_attempts=10**6, max_age=timedelta(days=400))
    last = Delivery(attempts=10**5, due=NOW)
    found = after_attempt(last, REFUSED, patient, ended=NOW, now=NOW, jitter=1.0)
    assert found.due == NOW + LONGEST_DELAY


def test_success_ends_it_and_forgets_the_errors_before() -> None:
    assert after(REFUSED, Attempt()) == Delivery(state=DeliveryState.DELIVERED, attempts=2)


def test_receiver_that_wants_no_more_gets_no_more() -> None:
    assert after(attrs.evolve(REFUSED, final=True)) == Delivery(
        state=DeliveryState.FAILED, attempts=1, last_error=REFUSED.error
    )


def test_it_is_given_up_after_so_many_attempts() -> None:
    assert after(*[REFUSED] * 4).state is DeliveryState.PENDING
    assert after(*[REFUSED] * 5) == Delivery(state=DeliveryState.FAILED, attempts=5, last_error=REFUSED.error)


def test_it_is_given_up_where_the_next_attempt_would_be_too_late() -> None:
    short = attrs.evolve(POLICY, max_age=timedelta(seconds=24))
    assert after(REFUSED, policy=short).state is DeliveryState.PENDING
    assert after(REFUSED, REFUSED, policy=short).state is DeliveryState.FAILED


@pytest.mark.parametrize(("asked", "waited"), [(1, 5), (60, 60), (10**6, LONGEST_DELAY.total_seconds())])
def test_retry_after_makes_the_wait_longer_within_bounds(asked: float, waited: float) -> None:
    patient = attrs.evolve(POLICY, max_age=timedelta(days=1))
    delivery = after(attrs.evolve(REFUSED, retry_after=timedelta(seconds=asked)), policy=patient)
    assert delivery.due == NOW + timedelta(seconds=waited)


def test_error_is_cut() -> None:
    assert len(after(Attempt(error="x" * 10_000)).last_error or "") == MAX_ERROR


@pytest.mark.parametrize(
    ("events", "ends"),
    [
        (("completed", "failed", "cancelled"), [True, True, True]),
        (("failed",), [False, True, False]),
    ],
)
def test_every_end_of_a_job_begins_the_delivery_that_is_asked_for(
    events: tuple[EndName, ...], ends: list[bool]
) -> None:
    job = queued("a")
    job = attrs.evolve(job, request=attrs.evolve(job.request, webhook=Webhook(url="https://a.example/", events=events)))
    found = [each.delivery for each in (completed(job), failed(job), jobs.cancel(job, NOW))]
    assert found == [Delivery(due=NOW) if sent else None for sent in ends]


def test_job_without_a_webhook_has_no_delivery() -> None:
    assert completed(queued("a")).delivery is None
    assert first_delivery(None, "completed", NOW) is None
    assert jobs.with_delivery(completed(queued("a")), Delivery()).delivery is None


def test_address_is_not_in_what_a_log_may_print() -> None:
    assert "secret" not in repr(Webhook(url="https://hooks.example/secret"))

"""A webhook: where a job's end is sent, whether that was done, and when it is tried again; values and rules, no I/O."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, Literal

import attrs
from msgspec import Meta

MAX_URL: Final = 2048
MAX_ERROR: Final = 200

EndName = Literal["completed", "failed", "cancelled"]
ALL_ENDS: Final[tuple[EndName, ...]] = ("completed", "failed", "cancelled")

FIRST_DELAY: Final = timedelta(seconds=5)
DELAY_FACTOR: Final = 4
LONGEST_DELAY: Final = timedelta(hours=2)
"""Also of what a receiver asks for in Retry-After."""


@attrs.frozen(kw_only=True)
class Webhook:
    """Where to send the job when it has ended: a POST of the job as JSON, signed after Standard Webhooks."""

    url: Annotated[str, Meta(min_length=1, max_length=MAX_URL)] = attrs.field(repr=False)
    """http or https, without credentials; private addresses only where the server allows them."""
    events: Annotated[tuple[EndName, ...], Meta(min_length=1, max_length=len(ALL_ENDS))] = ALL_ENDS
    """The ends that are sent."""


class DeliveryState(StrEnum):
    """What became of the one message that a job's end is worth."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    """Given up."""


@attrs.frozen(kw_only=True)
class Delivery:
    """The delivery of a finished job's webhook."""

    state: DeliveryState = DeliveryState.PENDING
    attempts: int = 0
    last_error: str | None = None
    """A sentence about the last attempt that failed."""
    due: datetime | None = None
    """When it is tried again; ``None`` where it is not."""


@attrs.frozen(kw_only=True)
class Attempt:
    """What became of one attempt."""

    error: str | None = None
    """A sentence about what went wrong; ``None``: the receiver has it."""
    final: bool = False
    """Whether another attempt would be in vain."""
    retry_after: timedelta | None = None
    """How long the receiver wants to be left alone."""


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How often and for how long a delivery is tried."""

    max_attempts: int
    max_age: timedelta
    """Since the job's end."""


def first_delivery(webhook: Webhook | None, end: str, now: datetime) -> Delivery | None:
    """Return the delivery that a job's end is worth; ``None`` where it is not to be sent."""
    if webhook is None or end not in webhook.events:
        return None
    return Delivery(due=now)


def after_attempt(
    delivery: Delivery, attempt: Attempt, policy: RetryPolicy, *, ended: datetime, now: datetime, jitter: float
) -> Delivery:
    """Return a delivery after one more attempt.

    Args:
        delivery: as it was.
        attempt: what became of it.
        policy: when to give up.
        ended: the job's end.
        now: the time.
        jitter: 0 to 1; receivers that were down are not asked by all at one time when they are back.
    """
    attempts = delivery.attempts + 1
    if attempt.error is None:
        return Delivery(state=DeliveryState.DELIVERED, attempts=attempts)
    error = attempt.error[:MAX_ERROR]
    wait = max(_delay(attempts, jitter), min(attempt.retry_after or timedelta(0), LONGEST_DELAY))
    over = attempts >= policy.max_attempts or now + wait - ended > policy.max_age
    if attempt.final or over:
        return Delivery(state=DeliveryState.FAILED, attempts=attempts, last_error=error)
    return Delivery(attempts=attempts, last_error=error, due=now + wait)


def is_due(due: datetime, now: datetime) -> bool:
    """Return whether a delivery may be tried now; one that is due later than any wait is, by a clock set back, may."""
    return due <= now or due > now + LONGEST_DELAY


def _delay(attempts: int, jitter: float) -> timedelta:
    # The power is bounded before it is taken: the number of attempts is a setting.
    whole: timedelta = min(FIRST_DELAY * DELAY_FACTOR ** min(attempts - 1, 10), LONGEST_DELAY)
    return whole * (0.5 + jitter / 2)

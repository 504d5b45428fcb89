"""What the stats actor is told and asked."""

from collections.abc import Mapping

import attrs

from mflux_api.actors.mailbox import Ask


@attrs.frozen(kw_only=True)
class Count:
    """Something happened. Lost when the mailbox is full."""

    name: str
    amount: int = 1


@attrs.frozen(kw_only=True)
class Counters:
    """What happened since the process started."""

    uptime_seconds: float
    """By a clock that cannot be set."""
    counts: Mapping[str, int]


@attrs.frozen(kw_only=True)
class GetCounters(Ask[Counters]):
    """Read the process counters."""


StatsMessage = Count | GetCounters

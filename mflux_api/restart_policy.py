"""When a supervisor restarts which of its children, and when it gives up."""

from enum import Enum

import attrs


class Strategy(Enum):
    """Which children are restarted when one of them fails."""

    ONE_FOR_ONE = "one_for_one"
    """Only the failed one."""
    REST_FOR_ONE = "rest_for_one"
    """The failed one and all that were started after it."""
    ONE_FOR_ALL = "one_for_all"
    """All of them."""


@attrs.frozen(kw_only=True)
class Backoff:
    """Seconds to wait before the n-th restart in a row: ``first × factor^(n-1)``, at most ``maximum``."""

    first: float = 0.05
    factor: float = 2.0
    maximum: float = 5.0

    def delay(self, failures: int) -> float:
        """Return the wait after ``failures`` failures within the intensity's window (at least 1)."""
        return min(self.maximum, self.first * self.factor ** (failures - 1))


@attrs.frozen(kw_only=True)
class Intensity:
    """How many restarts within how many seconds are tolerated."""

    restarts: int = 3
    seconds: float = 60.0


DEFAULT_BACKOFF = Backoff()
DEFAULT_INTENSITY = Intensity()

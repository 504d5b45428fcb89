"""How much of a stage's time is spent, and when a training run has to end."""

import time


class Clock:
    """Time spent of a stage's plan over all its runs, in seconds; it starts when it is made.

    Args:
        spent: Seconds of the plan that earlier runs had.
        plan_minutes: Training time of the stage over all its runs.
        run_minutes: Training time of this run.
        stop_at: Seconds of the epoch at which the run ends whatever is left, or 0.
    """

    def __init__(self, spent: float, plan_minutes: float, run_minutes: float, stop_at: float = 0.0) -> None:
        self._stop_at = stop_at
        self.spent, self.plan, self.run = spent, plan_minutes * 60, run_minutes * 60
        self._begun = self._last = time.perf_counter()

    def tick(self) -> None:
        """Count the time since the last tick."""
        now = time.perf_counter()
        self.spent += now - self._last
        self._last = now

    @property
    def progress(self) -> float:
        """The share of the plan that is done, 0..1."""
        return min(1.0, self.spent / self.plan)

    @property
    def over(self) -> bool:
        """Whether the time of this run or of the plan is up, or the time of day to stop at has come."""
        late = self._stop_at > 0 and time.time() >= self._stop_at
        return late or self._last - self._begun >= self.run or self.spent >= self.plan

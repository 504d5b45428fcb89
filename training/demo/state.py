"""What a run keeps between calls: weights, their averages, the optimizer, the clock."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of parameters, which is what gets exported."""

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values: dict[str, dict[str, Tensor]] = {
            name: {key: value.detach().clone().float() for key, value in module.state_dict().items()}
            for name, module in modules.items()
        }
        self._averages = [value for state in self.values.values() for value in state.values()]
        self._followed = [value for module in modules.values() for value in module.state_dict().values()]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the current weights; faster at the beginning."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averages, self._followed, share)

    def restore(self, values: dict[str, dict[str, Tensor]], updates: int) -> None:
        """Continue from saved averages."""
        self.updates = updates
        for name, state in values.items():
            for key, value in state.items():
                self.values[name][key].copy_(value)


class Clock:
    """Time spent of a stage's plan, over all its calls; it runs from when it is made."""

    def __init__(self, spent: float, plan_minutes: float, call_minutes: float, stop_at: float = 0.0) -> None:
        self._stop_at = stop_at
        self.spent, self.plan, self.call = spent, plan_minutes * 60, call_minutes * 60
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
        """Whether this call's or the plan's time is up, or the wall clock's."""
        late = self._stop_at > 0 and time.time() >= self._stop_at
        return late or self._last - self._begun >= self.call or self.spent >= self.plan


def save(file: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(file)


def load(file: Path, device: torch.device) -> dict[str, Any] | None:
    """A checkpoint, or None where there is none."""
    if not file.is_file():
        return None
    content: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    return content

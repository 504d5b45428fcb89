"""The exponential moving average of the weights, which is what gets exported."""

import torch
from torch import Tensor, nn


class EMA:
    """An exponential moving average of the parameters and buffers of ``modules``.

    Args:
        modules: What is averaged, by component name.
        decay: The share of the old average that an update keeps, once there were enough updates.
    """

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values: dict[str, dict[str, Tensor]] = {
            name: {key: value.detach().clone().float() for key, value in module.state_dict().items()}
            for name, module in modules.items()
        }
        self._averages = [value for state in self.values.values() for value in state.values()]
        self._weights = [value for module in modules.values() for value in module.state_dict().values()]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the current weights, faster at the beginning."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averages, self._weights, share)

    def restore(self, values: dict[str, dict[str, Tensor]], updates: int) -> None:
        """Continue from saved averages that have had ``updates`` updates."""
        self.updates = updates
        for name, state in values.items():
            for key, value in state.items():
                self.values[name][key].copy_(value)

"""Muon for the blocks' matrices, AdamW for everything else."""

from typing import Any

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_DECAY = 0.02
# Makes the updates as large as AdamW's (arXiv:2502.16982).
_UPDATE_SIZE = 0.2


def orthogonalize(updates: Tensor) -> Tensor:
    """Bring the singular values of matrices near 1: five Newton-Schulz steps, as in Muon (K. Jordan, 2024).

    Args:
        updates: Matrices [k, rows, columns].

    Returns:
        Matrices of the same shape, in bfloat16.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = updates.to(torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.mT if tall else x


class Optimizer:
    """Muon for the blocks' matrices, those of one shape together, and AdamW for everything else.

    Args:
        modules: What is trained.
        fused: Whether AdamW runs as one kernel, which needs a GPU.
    """

    def __init__(self, modules: list[nn.Module], *, fused: bool) -> None:
        self._matrices: dict[torch.Size, list[nn.Parameter]] = {}
        decayed, others = [], []
        for module in modules:
            for name, parameter in module.named_parameters():
                if parameter.ndim == 2 and ("_blocks." in name or ".layers." in name):
                    self._matrices.setdefault(parameter.shape, []).append(parameter)
                elif parameter.ndim > 1:
                    decayed.append(parameter)
                else:
                    others.append(parameter)
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self._momenta = {
            shape: torch.zeros(len(found), *shape, device=found[0].device) for shape, found in self._matrices.items()
        }
        self._adam = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": _DECAY}, {"params": others, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            fused=fused,
        )

    @torch.no_grad()
    def step(self, rate: float, matrix_rate: float) -> None:
        """Update every parameter from its gradient, and forget the gradients.

        Args:
            rate: AdamW's learning rate.
            matrix_rate: Muon's.
        """
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        for shape, matrices in self._matrices.items():
            # The text encoder's layers after the last output never get a gradient.
            gradients = torch.stack([torch.zeros_like(m) if m.grad is None else m.grad for m in matrices])
            momentum = self._momenta[shape].lerp_(gradients, 1 - _MOMENTUM)
            updates = orthogonalize(gradients.lerp_(momentum, _MOMENTUM)).float()
            torch._foreach_mul_(matrices, 1 - matrix_rate * _DECAY)
            size = _UPDATE_SIZE * max(shape) ** 0.5
            torch._foreach_add_(matrices, list(updates.unbind()), alpha=-matrix_rate * size)
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` continues from."""
        return {"adam": self._adam.state_dict(), "momenta": list(self._momenta.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self._adam.load_state_dict(state["adam"])
        for own, saved in zip(self._momenta.values(), state["momenta"], strict=True):
            own.copy_(saved)

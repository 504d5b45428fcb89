"""Several processes that train one model, a GPU each: ``python -m torch.distributed.run --nproc-per-node 2 -m ...``."""

import os

import torch
import torch.distributed as distributed
from torch import Tensor, nn


class Team:
    """What the processes agree on; alone, everything stays as it is.

    Each member draws its own images and noise. All of them take the same sizes in the same order and the mean of
    their gradients, so that their weights stay equal.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def leads(self) -> bool:
        """Whether this member writes the files."""
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Meet the others."""
        if self.size > 1:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def leave(self) -> None:
        """Part; what follows is done alone."""
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def wait(self) -> None:
        """Until all of them are here."""
        if self.size > 1:
            distributed.barrier()

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Put the members' mean in the place of each gradient."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.view(-1) for gradient in gradients]) / self.size
        distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def agree(self, *values: float) -> list[float]:
        """The leader's values."""
        if self.size == 1:
            return list(values)
        shared: Tensor = torch.tensor(values, dtype=torch.float64, device="cuda" if self._on_gpu else "cpu")
        distributed.broadcast(shared, 0)
        return [float(value) for value in shared.tolist()]

    @property
    def _on_gpu(self) -> bool:
        return str(distributed.get_backend()) == "nccl"

"""Several processes that train one model, a GPU each: ``python -m torch.distributed.run --nproc-per-node 2 -m ...``."""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


class DistributedContext:
    """The processes that train together; a process that is alone needs no agreement, and every method does nothing.

    Each process renders its own images and draws its own noise. All of them take the same sizes in the same order and
    the mean of their gradients, so that their weights stay equal.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Meet the other processes."""
        if self.world_size > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def leave(self) -> None:
        """Part from the other processes; what follows is done alone."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def wait_for_everyone(self) -> None:
        """Wait until all processes have come this far."""
        if self.world_size > 1:
            dist.barrier()

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes."""
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.view(-1) for gradient in gradients]) / self.world_size
        dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def broadcast(self, *values: float) -> list[float]:
        """Return the main process's values in every process."""
        if self.world_size == 1:
            return list(values)
        shared: Tensor = torch.tensor(values, dtype=torch.float64, device="cuda" if self._on_gpu else "cpu")
        dist.broadcast(shared, 0)
        return [float(value) for value in shared.tolist()]

    @property
    def _on_gpu(self) -> bool:
        return str(dist.get_backend()) == "nccl"

"""Training steps as CUDA graphs: small steps cost what the GPU takes, not what launching their kernels takes."""

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UP = 3


class GraphedStep:
    """Calls a training step on tensors, as one recorded CUDA graph for each combination of their shapes.

    Args:
        step: Does all its work on the device and keeps its results in tensors that live on.
        graphed: Whether to record graphs; where not, ``step`` is called as it is.
    """

    def __init__(self, step: Callable[..., None], *, graphed: bool) -> None:
        self._step, self._graphed = step, graphed
        self._graphs: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}

    def __call__(self, *inputs: Tensor) -> None:
        """Run the step on ``inputs``; the first call with new shapes records their graph."""
        if not self._graphed:
            self._step(*inputs)
            return
        key = tuple(tensor.shape for tensor in inputs)
        if key not in self._graphs:
            self._graphs[key] = self._record(inputs)
        graph, places = self._graphs[key]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()

    def _record(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        places = tuple(tensor.clone() for tensor in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._step(*places)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step(*places)
        return graph, places

"""Compiling a model's function, without its weights being kept."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import mlx.core as mx

Result = TypeVar("Result")


def _nothing() -> None:
    """Mend nothing."""


class CompiledFunction(Generic[Result]):
    """A function that MLX compiles for each shape of its arrays, and the model's weights are among these.

    What a compiled function captures is never freed where an operation in it has several outputs, as ``mx.split`` and
    most kernels have: their arrays hold each other (MLX 0.32.2). Each unloaded transformer stayed in memory so.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        weights: Callable[[], Any],
        spoiled: Callable[[], None] = _nothing,
    ) -> None:
        """Prepare the function; it is traced when it is called with arrays of other shapes than before.

        Args:
            function: uses no array but its arguments, the weights and what it makes itself.
            weights: returns the modules that the function takes its weights from, in a list; they are not kept.
            spoiled: called where a trace was broken off, which leaves arrays without numbers in the modules.
        """
        self._weights = weights
        self._spoiled = spoiled
        self._inputs: list[Any] = []
        self._function: Callable[..., Result] = mx.compile(function, inputs=self._inputs)

    def __call__(self, *arguments: Any) -> Result:
        """Return what the function returns for the weights as they are now, not yet computed."""
        self._inputs[:] = self._weights()
        try:
            return self._function(*arguments)
        except BaseException:
            self._spoiled()
            raise
        finally:
            self._inputs.clear()

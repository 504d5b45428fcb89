"""Adapters on a transformer that stays as it is: wrapped for the time of a call, then exactly what it was before.

Nothing is ever added into a weight. An adapter works on top of a layer, quantized or not, and taking it away restores
the very same arrays, so the next image without it has the same bytes as before.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.common.lora.layer.fused_linear_lora_layer import FusedLoRALinear
from mflux.models.common.lora.layer.linear_lokr_layer import LoKrLinear
from mflux.models.common.lora.layer.linear_lora_layer import LoRALinear
from mflux.models.common.lora.mapping.lora_loader import LoRALoader
from mlx import nn

from mflux_api.engine.lora.adapter_files import Factors, Kronecker, LoraError, LowRank, blaming, read_adapter

__all__ = ["Adapted", "Lora", "LoraError", "LoraStack", "ReadingLora", "no_reading"]

ReadingLora = Callable[[int | None], None]
"""Told which of a pass's LoRAs is read now, by its place; ``None`` when all are."""


def no_reading(index: int | None) -> None:
    """Tell no one."""


@attrs.frozen
class Lora:
    """An adapter file and how strongly it works."""

    path: Path
    scale: float = 1.0
    """0 has no effect at all, 1 the one it was trained for."""


@attrs.frozen(eq=False)
class _Place:
    """A layer and the module that holds it."""

    parent: Any
    name: str
    layer: Any
    inputs: int
    outputs: int


class LoraStack:
    """Adapters read and checked against one transformer, ready to be put on it."""

    def __init__(self, transformer: Any, loras: Sequence[Lora], reading: ReadingLora = no_reading) -> None:
        """Read the files; the transformer is not changed.

        Args:
            transformer: what they are checked against.
            loras: the adapters.
            reading: told which of them is read now, and ``None`` when all are.

        Raises:
            LoraError: a file cannot be used, or was made for another model.
        """
        layers: dict[str, list[Any]] = defaultdict(list)
        places: dict[str, _Place] = {}
        finite: dict[str, list[tuple[str, mx.array]]] = defaultdict(list)
        for index, lora in enumerate(loras):
            reading(index)
            with blaming(lora.path.name):
                for target, factors in read_adapter(lora.path).items():
                    place = places.setdefault(target, _find(transformer, target, lora.path.name))
                    _check(place, target, factors, lora.path.name)
                    finite[target].append((lora.path.name, _is_finite(factors)))
                    # At 0 it is left out, and not multiplied by 0: the same bits as without it.
                    if lora.scale:
                        layers[target].append(_layer(place, factors, lora.scale))
        self._wrapped = [(places[target], _combine(places[target].layer, each)) for target, each in layers.items()]
        with blaming(" and ".join(lora.path.name for lora in loras)):
            for target, (_, wrapper) in zip(layers, self._wrapped, strict=True):
                # Together, so that no factor stays in memory for its check alone.
                mx.eval(wrapper.parameters(), [each for _, each in finite[target]])
            broken = [name for checks in finite.values() for name, each in checks if not each.item()]
        reading(None)
        if broken:
            # One such number would turn the whole image black.
            raise LoraError(f"The LoRA {broken[0]} holds NaN or infinite numbers: its training failed, so use another.")

    def __len__(self) -> int:
        """Return how many layers are changed."""
        return len(self._wrapped)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the adapters on, and take them off at the end whatever happens; each takes well under a millisecond.

        A graph that was built in between may be evaluated after it.
        """
        try:
            for place, wrapper in self._wrapped:
                setattr(place.parent, place.name, wrapper)
            yield
        finally:
            for place, _ in self._wrapped:
                setattr(place.parent, place.name, place.layer)


class Adapted:
    """A transformer function whose adapters are on for the time of each call."""

    def __init__(
        self,
        transformer: Any,
        loras: Sequence[Lora],
        function: Callable[..., mx.array],
        reading: ReadingLora = no_reading,
    ) -> None:
        """Read and check the adapters.

        Args:
            transformer: what ``function`` calls.
            loras: the adapters.
            function: compiled for these adapters alone, or not at all: a compiled function keeps the layers it met.
            reading: told which of them is read now, and ``None`` when all are.

        Raises:
            LoraError: a file cannot be used, or was made for another model.
        """
        self._files = _identity(loras)
        self._stack = LoraStack(transformer, loras, reading)
        self._function = function

    def fits(self, loras: Sequence[Lora]) -> bool:
        """Whether these are the very adapters, and their files did not change since."""
        return self._files == _identity(loras)

    def __call__(self, *arguments: mx.array) -> mx.array:
        """Call the function with the adapters on."""
        with self._stack.applied():
            return self._function(*arguments)


class _SplitLoKrLinear(LoKrLinear):  # type: ignore[misc]  # mflux has no types
    """A LoKr of a fused query-key-value layer on the layer that is one third of it."""

    def __init__(self, linear: Any, outputs: int, inputs: int, factors: Kronecker, scale: float) -> None:
        super().__init__(linear, 3 * outputs, inputs, factors.left, factors.right, None, scale)
        self.first_row = outputs * (factors.third or 0)
        self.rows = outputs

    def delta_matmul(self, x: mx.array) -> mx.array:
        whole: mx.array = super().delta_matmul(x)
        return whole[..., self.first_row : self.first_row + self.rows]

    def delta_weight(self, base_weight: mx.array | None = None, dtype: mx.Dtype | None = None) -> mx.array:
        whole: mx.array = super().delta_weight(base_weight=base_weight, dtype=dtype)
        return whole[self.first_row : self.first_row + self.rows]


def _identity(loras: Sequence[Lora]) -> list[tuple[Lora, tuple[int, ...]]]:
    """Return the adapters with what changes when their files do.

    A copy may have the size and the time of the file that it replaces, so more than those is compared.
    """
    try:
        stats = [lora.path.stat() for lora in loras]
    except OSError:
        raise LoraError("A LoRA's file is gone or cannot be read.") from None
    return [
        (lora, (stat.st_dev, stat.st_ino, stat.st_ctime_ns, stat.st_mtime_ns, stat.st_size))
        for lora, stat in zip(loras, stats, strict=True)
    ]


def _find(transformer: Any, target: str, name: str) -> _Place:
    parent, _, last = target.rpartition(".")
    try:
        holder = LoRALoader._get_target_module(transformer, parent) if parent else transformer
        layer = getattr(holder, last)
    except (AttributeError, IndexError, KeyError):
        raise LoraError(
            f"The LoRA {name} changes {target}, which this model does not have: use its own model."
        ) from None
    if isinstance(layer, nn.QuantizedLinear):
        # Packed weights do not show how many inputs they have at 3 and 6 bits; the scales always do.
        return _Place(holder, last, layer, layer.scales.shape[1] * layer.group_size, layer.scales.shape[0])
    if not isinstance(layer, nn.Linear):
        raise LoraError(f"The LoRA {name} changes {target}, which is not a linear layer.")
    return _Place(holder, last, layer, layer.weight.shape[1], layer.weight.shape[0])


def _is_finite(factors: Factors) -> mx.array:
    """Return whether all factors are finite numbers: a boolean array, not yet computed."""
    values = [value for value in attrs.asdict(factors, recurse=False).values() if isinstance(value, mx.array | float)]
    arrays = [mx.array(value) if isinstance(value, float) else value for value in values]
    return mx.all(mx.stack([mx.all(mx.isfinite(array)) for array in arrays]))


def _check(place: _Place, target: str, factors: Factors, name: str) -> None:
    expected = (place.outputs, place.inputs)
    match factors:
        case LowRank(down=down, up=up):
            found = (up.shape[1], down.shape[0])
        case Kronecker(left=left, right=right, third=third):
            if left.ndim != 2 or right.ndim != 2:
                raise LoraError(f"The LoRA {name} holds factors for {target} that are not matrices.")
            found = (left.shape[0] * right.shape[0], left.shape[1] * right.shape[1])
            if third is not None:
                expected = (3 * place.outputs, place.inputs)
            if factors.magnitude is not None and (third is not None or factors.magnitude.size != place.outputs):
                raise LoraError(f"The LoRA {name} holds magnitudes for {target} that do not fit.")
    if found != expected:
        raise LoraError(
            f"The LoRA {name} changes {target} as a layer of shape {found}, and this model's has {expected}: it was "
            "made for another size of the model."
        )


def _layer(place: _Place, factors: Factors, scale: float) -> Any:
    match factors:
        case LowRank(down=down, up=up):
            # LoRALinear's own constructor would draw random weights from MLX's global state.
            layer = LoRALinear.__new__(LoRALinear)
            nn.Module.__init__(layer)
            layer.linear, layer.scale = place.layer, scale
            layer.lora_A, layer.lora_B = down.astype(ModelConfig.precision), up.astype(ModelConfig.precision)
            return layer
        case Kronecker(third=None):
            return LoKrLinear(
                place.layer,
                place.outputs,
                place.inputs,
                factors.left,
                factors.right,
                factors.magnitude,
                scale * factors.alpha,
            )
        case Kronecker():
            return _SplitLoKrLinear(place.layer, place.outputs, place.inputs, factors, scale * factors.alpha)


def _combine(base: Any, layers: list[Any]) -> Any:
    return layers[0] if len(layers) == 1 else FusedLoRALinear(base_linear=base, loras=layers)

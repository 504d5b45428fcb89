"""Adapters on a transformer that stays as it is: wrapped for the time of a call, then exactly what it was before.

Nothing is ever added into a weight. An adapter works on top of a layer, quantized or not, and taking it away restores
the very same arrays, so the next image without it has the same bytes as before.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
from mflux.models.common.lora.mapping.lora_loader import LoRALoader
from mlx import nn

from mflux_api.catalog.lora_layers import EXAMPLES
from mflux_api.engine.lora.adapter_files import Adapter, LoraError, blaming, config_of, nothing_known, read_adapter
from mflux_api.engine.lora.factors import BiasUpdate, Difference, Factors, Hadamard, Kronecker, LowRank, Product
from mflux_api.engine.lora.layers import column_norms, with_updates
from mflux_api.ipc.printable import printable, sentence

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


@attrs.frozen(eq=False)
class _Check:
    """What is computed of one update, as boolean arrays."""

    lora: Lora
    finite: mx.array
    changes: mx.array
    """Whether it is another one than 0."""


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
        updates: dict[str, list[tuple[Factors, float]]] = defaultdict(list)
        places: dict[str, _Place] = {}
        checks: dict[str, list[_Check]] = defaultdict(list)
        warnings: dict[str, None] = {}
        for index, lora in enumerate(loras):
            reading(index)
            with blaming(lora.path.name):
                adapter = read_adapter(lora.path)
                fitting = _fit(transformer, adapter, places, lora.path.name)
                warnings |= dict.fromkeys(_left_out(adapter, fitting, lora.path.name))
                for path in fitting:
                    for factors in adapter.updates[path]:
                        checks[path].append(_Check(lora, _is_finite(factors), _changes(factors)))
                        # At 0 it is left out, and not multiplied by 0: the same bits as without it.
                        if lora.scale:
                            updates[path].append((_own_magnitude(adapter, path, factors, places), lora.scale))
        self._wrapped = [(places[path], with_updates(places[path].layer, each)) for path, each in updates.items()]
        with blaming(" and ".join(lora.path.name for lora in loras)):
            for path, (_, wrapper) in zip(updates, self._wrapped, strict=True):
                # Together, so that no factor stays in memory for its check alone.
                mx.eval(wrapper.parameters(), [(each.finite, each.changes) for each in checks[path]])
            every = [each for found in checks.values() for each in found]
            broken = [each.lora for each in every if not each.finite.item()]
            changing = {each.lora for each in every if each.changes.item()}
        reading(None)
        if broken:
            # One such number would turn the whole image black.
            raise LoraError(
                f"The LoRA {broken[0].path.name} holds NaN or infinite numbers: its training or its conversion failed, "
                "so use another."
            )
        for lora in loras:
            if lora.scale and lora not in changing:
                shown = printable(lora.path.name, 80)
                warnings[f"The LoRA {shown} has no effect: all its updates are 0, or their alpha is."] = None
        self.warnings = tuple(sentence(each) for each in warnings)
        """What of the files is not used, or has no effect, a sentence each."""

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

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the adapters' files is not used, a sentence each."""
        return self._stack.warnings

    def fits(self, loras: Sequence[Lora]) -> bool:
        """Whether these are the very adapters, and their files did not change since."""
        return self._files == _identity(loras)

    def __call__(self, *arguments: mx.array) -> mx.array:
        """Call the function with the adapters on."""
        with self._stack.applied():
            return self._function(*arguments)


def _identity(loras: Sequence[Lora]) -> list[tuple[Lora, tuple[int, ...], tuple[int, ...] | None]]:
    """Return the adapters with what changes when their files do.

    A copy may have the size and the time of the file that it replaces, so more than those is compared.
    """
    try:
        stats = [_state(lora.path) for lora in loras]
    except OSError:
        raise LoraError("A LoRA's file is gone or cannot be read.") from None
    return [(lora, state, _state_beside(lora.path)) for lora, state in zip(loras, stats, strict=True)]


def _state(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_ctime_ns, stat.st_mtime_ns, stat.st_size


def _state_beside(path: Path) -> tuple[int, ...] | None:
    config = config_of(path)
    try:
        return None if config is None else _state(config)
    except OSError:
        return None


def _fit(transformer: Any, adapter: Adapter, places: dict[str, _Place], name: str) -> list[str]:
    """Return which of an adapter's layers the transformer has, and note where they are.

    Raises:
        LoraError: it was made for another model, or too little of it is known.
    """
    fitting = []
    for path, updates in adapter.updates.items():
        if path not in places:
            place = _find(transformer, path, name)
            if place is None:
                continue
            places[path] = place
        for factors in updates:
            _check(places[path], path, factors, name)
        fitting.append(path)
    # Only now: a layer that does not fit says more than names that are not known.
    if not adapter.names.mostly_understood:
        raise LoraError(nothing_known(printable(name, 80), adapter.names))
    if not fitting:
        missing = ", ".join(sorted(adapter.updates)[:EXAMPLES])
        raise LoraError(f"The LoRA {name} changes only layers that this model does not have ({missing}): use another.")
    return fitting


def _own_magnitude(adapter: Adapter, path: str, factors: Factors, places: Mapping[str, _Place]) -> Factors:
    """Return a layer's update with magnitudes of its own, where it shares those of its inputs with other layers.

    Query, key and value are one layer in BFL's models, whose columns go through all three. With the magnitudes of that
    column times the part of its norm that is the layer's own, the layer comes out as its rows of the whole.
    """
    if path not in adapter.sharing or not isinstance(factors, Product) or factors.magnitude is None:
        return factors
    squares = [
        mx.square(column_norms(places[each].layer, other))
        for each in adapter.sharing[path]
        for other in adapter.updates[each]
        if isinstance(other, type(factors))
    ]
    whole = mx.sqrt(sum(squares[1:], squares[0])) + mx.finfo(mx.float32).eps
    return attrs.evolve(factors, magnitude=factors.magnitude * column_norms(places[path].layer, factors) / whole)


def _left_out(adapter: Adapter, fitting: Collection[str], name: str) -> Iterator[str]:
    """Yield what of a file is not used, or what speaks against using it."""
    if adapter.other_model is not None:
        yield (
            f"The LoRA {printable(name, 80)} was made for {adapter.other_model}, as its metadata says: its layers fit "
            "this model, and what they do in it is left to chance."
        )
    names = adapter.names
    left_over = [*names.left_over, *sorted(adapter.updates.keys() - fitting)]
    if left_over:
        examples = ", ".join(printable(each, 80) for each in left_over[:EXAMPLES])
        more = ", for example" if len(left_over) > EXAMPLES else ":"
        count = f"{len(left_over)} of its names are" if len(left_over) > 1 else "one of its names is"
        yield f"The LoRA {printable(name, 80)} is used in part: {count} not known or not supported{more} {examples}."
    if known := names.text_encoder_layers:
        layers = f"{known} text-encoder layers are" if known > 1 else "one text-encoder layer is"
        yield f"The LoRA {printable(name, 80)} is used in part: its {layers} not used, only the transformer's."


def _find(transformer: Any, path: str, name: str) -> _Place | None:
    """Return the layer at a path; ``None`` where models of this family need not have it.

    Raises:
        LoraError: its block is not there.
    """
    parent, _, last = path.rpartition(".")
    try:
        holder = LoRALoader._get_target_module(transformer, parent) if parent else transformer
        layer = getattr(holder, last)
    except (AttributeError, IndexError, KeyError):
        blocks = len(getattr(transformer, path.partition(".")[0], ()))
        raise LoraError(
            f"The LoRA {name} changes {path}, which this model does not have (it has {blocks} of these blocks): it was "
            "made for another kind or size of model."
        ) from None
    if isinstance(layer, nn.QuantizedLinear):
        # Packed weights do not show how many inputs they have at 3 and 6 bits; the scales always do.
        return _Place(holder, last, layer, layer.scales.shape[1] * layer.group_size, layer.scales.shape[0])
    if not isinstance(layer, nn.Linear):
        return None
    return _Place(holder, last, layer, layer.weight.shape[1], layer.weight.shape[0])


def _is_finite(factors: Factors) -> mx.array:
    """Return whether all factors are finite numbers: a boolean array, not yet computed."""
    return mx.all(mx.stack([mx.all(mx.isfinite(array)) for array in _arrays(factors)]))


def _changes(factors: Factors) -> mx.array:
    """Return whether an update is another one than 0: a boolean array, not yet computed."""
    if _magnitude(factors) is not None:
        return mx.array(True)
    # A product is 0 where one of its factors is.
    return mx.all(mx.stack([mx.any(array) for array in _arrays(factors)]))


def _arrays(factors: Factors) -> list[mx.array]:
    """Return all numbers of an update."""
    values = attrs.asdict(factors, recurse=False).values()
    return [
        mx.array(value) if isinstance(value, float) else value
        for value in values
        if isinstance(value, mx.array | float)
    ]


def _magnitude(factors: Factors) -> mx.array | None:
    return factors.magnitude if isinstance(factors, Product) else None


def _check(place: _Place, path: str, factors: Factors, name: str) -> None:
    expected: tuple[int, ...] = (place.outputs, place.inputs)
    found: tuple[int, ...]
    match factors:
        case LowRank(down=down, up=up):
            found = (up.shape[1], down.shape[0])
        case Kronecker(left=left, right=right, rows=rows):
            if left.ndim != 2 or right.ndim != 2:
                raise LoraError(f"The LoRA {name} holds factors for {path} that are not matrices.")
            found = (left.shape[0] * right.shape[0], left.shape[1] * right.shape[1])
            expected = (place.outputs * rows.parts // len(rows.taken), place.inputs)
        case Hadamard(left=left, right=right, other_left=other_left, other_right=other_right):
            found = (left.shape[0], right.shape[1])
            if (other_left.shape[0], other_right.shape[1]) != found:
                raise LoraError(f"The LoRA {name} holds factors for {path} that do not fit each other.")
        case Difference(matrix=matrix):
            found = tuple(matrix.shape)
        case BiasUpdate(vector=vector):
            found, expected = (vector.size,), (place.outputs,)
    if found != expected:
        raise LoraError(
            f"The LoRA {name} changes {path} as a layer of shape {found}, and this model's has {expected}: it was made "
            "for another kind or size of model."
        )
    magnitude = _magnitude(factors)
    if magnitude is not None and tuple(magnitude.shape) not in ((place.outputs, 1), (1, place.inputs)):
        raise LoraError(f"The LoRA {name} holds magnitudes for {path} that do not fit: save it again.")

"""Comparing a module's parameters with a checkpoint's tensors, then filling the module."""

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import attrs
import mlx.core as mx
from mflux.models.common.config.model_config import ModelConfig
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from mflux_api.engine.checkpoint import CheckpointError
from mflux_api.engine.device import is_out_of_memory
from mflux_api.engine.stored_tensors import StoredTensor, TensorReader, read_by_mlx
from mflux_api.engine.weights.quantization import quantize_weight

# Tensors that other libraries save with a component and that no module here has.
_KNOWN_EXTRAS = re.compile(r"lm_head\.weight|bn\.num_batches_tracked|.*rotary_emb\.inv_freq")
COMPUTED = ("rotary_emb.inv_freq",)
"""Parameters that a module computes from its configuration, so no file has to hold them."""
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@attrs.frozen
class ExpectedTensor:
    """A tensor that a component's files must hold."""

    parameter: str | None
    """The module's parameter it becomes; None for one that is compared and not loaded."""
    shape: tuple[int, ...]
    """As in the file: convolutions in PyTorch's (out, in, height, width)."""
    transform: Callable[[mx.array], mx.array] | None
    """From the file's layout to the module's."""
    packed: bool = False
    """Quantized numbers, several in each 32-bit integer."""


def expected_tensors(module: nn.Module, mapping: Sequence[Any]) -> dict[str, ExpectedTensor]:
    """Return what the files must hold for every parameter of ``module``, by the file's name, in the module's order.

    ``mapping`` is a list of mflux's WeightTarget. mflux's own expansion of it has fixed counts (4 blocks of 3 residual
    layers), so a VAE of another depth would lose parameters; this goes from each parameter to its name in the file.

    Raises:
        CheckpointError: a parameter that no file of this format can hold.
    """
    rules = [(_pattern(target.to_pattern), target) for target in mapping]
    expected: dict[str, ExpectedTensor] = {}
    for parameter, array in named_arrays(module):
        if parameter in COMPUTED:
            continue
        for pattern, target in rules:
            match = pattern.fullmatch(parameter)
            if match is not None:
                name = target.from_pattern[0].format(**match.groupdict())
                expected[name] = ExpectedTensor(parameter, _file_shape(array.shape, target), target.transform)
                break
        else:
            raise CheckpointError(f"The parameter {parameter} has no name in a diffusers checkpoint.")
    return expected


def with_unused_layers(expected: Mapping[str, ExpectedTensor], used: int, layers: int) -> dict[str, ExpectedTensor]:
    """Add the text-encoder layers ``used`` to ``layers`` - 1, which the files must hold and which are never read."""
    first = "model.layers.0."
    unused = {
        f"model.layers.{layer}.{name.removeprefix(first)}": attrs.evolve(tensor, parameter=None)
        for layer in range(used, layers)
        for name, tensor in expected.items()
        if name.startswith(first)
    }
    return {**expected, **unused}


def check(component: str, expected: Mapping[str, ExpectedTensor], found: Mapping[str, StoredTensor]) -> None:
    """Compare every name and shape; nothing is read from disk.

    Raises:
        CheckpointError: naming the first tensor that is missing or of the wrong shape, else the first unexpected one.
    """
    for name, tensor in expected.items():
        if name not in found:
            raise CheckpointError(f"{component}: {name} of shape {tensor.shape} is missing.")
        shape = found[name].shape
        if shape != tensor.shape:
            raise CheckpointError(f"{component}: {name} has shape {shape}, and the configuration needs {tensor.shape}.")
        if tensor.packed and found[name].dtype != mx.uint32:
            raise CheckpointError(f"{component}: {name} must hold packed 32-bit integers.")
        if not tensor.packed and not mx.issubdtype(found[name].dtype, mx.floating):
            raise CheckpointError(f"{component}: {name} must hold floating-point numbers.")
    for name in sorted(found):
        if name not in expected and not _KNOWN_EXTRAS.fullmatch(name):
            raise CheckpointError(
                f"{component}: {name} of shape {found[name].shape} is unexpected: the configuration has no such "
                "parameter."
            )


def fill(
    component: str,
    module: nn.Module,
    expected: Mapping[str, ExpectedTensor],
    found: dict[str, StoredTensor],
    tensor_reader: TensorReader = read_by_mlx,
    *,
    quantize: Mapping[str, int] | None = None,
    read: Callable[[int], None] = lambda done: None,
) -> None:
    """Give ``module`` the checked tensors, in ``ModelConfig.precision``, and read them from disk now.

    Args:
        component: the component's name, for messages.
        module: what gets the tensors.
        expected: the files' tensors by name, compared with ``found`` before.
        found: the stored tensors; it is emptied.
        tensor_reader: reads them, in the module's order.
        quantize: the weights to quantize on the way, with their bits; ``module`` has quantized layers in their place.
        read: called with how many bytes of the files are read, after each tensor; what it raises ends the reading.

    Raises:
        CheckpointError: the files cannot be read.
    """
    needed = {name: tensor for name, tensor in expected.items() if tensor.parameter is not None}
    stored = deque(found[name] for name in needed)
    # Who holds a tensor that was computed with holds its bytes, too.
    found.clear()
    arrays: list[tuple[str, mx.array]] = []
    done = 0
    try:
        with closing(tensor_reader(stored)) as reading:
            for tensor in needed.values():
                raw, parameter = next(reading), str(tensor.parameter)
                # A transposed convolution would stay a strided view, to be copied again at every call.
                array = raw if tensor.transform is None else mx.contiguous(tensor.transform(raw))
                if not tensor.packed:
                    array = array.astype(ModelConfig.precision)
                bits = (quantize or {}).get(parameter)
                made = [(parameter, array)] if bits is None else quantize_weight(parameter, array, bits)
                # One at a time, so that a file's bytes and their converted copy exist together for one tensor only.
                mx.eval([each for _, each in made])
                arrays += made
                done += raw.nbytes
                del raw, array
                read(done)
        module.update(tree_unflatten(arrays))
        mx.eval(module.parameters())
    except (RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{component}: the weights cannot be read from disk.") from None


def named_arrays(module: nn.Module) -> list[tuple[str, mx.array]]:
    """Return a module's parameters by their dotted names, in the module's order."""
    leaves: dict[str, Any] = {}
    tree_flatten(module.parameters(), destination=leaves)
    return [(name, leaf) for name, leaf in leaves.items() if isinstance(leaf, mx.array)]


def count(module: nn.Module) -> int:
    """Return how many numbers the files of an unquantized module hold."""
    return sum(array.size for name, array in named_arrays(module) if name not in COMPUTED)


def weights_bytes(module: nn.Module) -> int:
    """Return how many bytes a module's weights take in memory."""
    return sum(array.nbytes for name, array in named_arrays(module) if name not in COMPUTED)


def _pattern(template: str) -> re.Pattern[str]:
    """Turn a template such as ``layers.{layer}.weight`` into a pattern with one named group per placeholder."""
    pieces = _PLACEHOLDER.split(template)
    return re.compile(
        "".join(rf"(?P<{piece}>\d+)" if position % 2 else re.escape(piece) for position, piece in enumerate(pieces))
    )


def _file_shape(shape: Sequence[int], target: Any) -> tuple[int, ...]:
    if target.transform is not None and len(shape) in (4, 5):
        # A convolution, of two or of three dimensions.
        out_channels, *kernel, in_channels = shape
        return (out_channels, in_channels, *kernel)
    return tuple(shape)

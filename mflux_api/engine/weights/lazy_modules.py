"""A checkpoint's modules in memory: opened and compared, read when they are first used, freed, and read again."""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

import attrs
import mlx.core as mx
from mlx import nn

from mflux_api.engine.checkpoint import CheckpointError
from mflux_api.engine.device import detect_device
from mflux_api.engine.stored_tensors import StoredTensor, TensorReader, read_by_mlx
from mflux_api.engine.weights.parameters import ExpectedTensor, check, fill, weights_bytes
from mflux_api.engine.weights.quantization import quantize_layers, replace_quantized_layers
from mflux_api.engine.weights.reading import Report, no_report

Name = TypeVar("Name", bound=str)
Reader: TypeAlias = Callable[[Callable[[int], None]], nn.Module]
"""Reads a module, and calls what it is given with how many bytes are read."""


@attrs.define(eq=False)
class OpenedModule:
    """A module whose files were opened and compared; its weights are not read yet."""

    name: str
    module: nn.Module
    expected: Mapping[str, ExpectedTensor]
    found: dict[str, StoredTensor]
    bits: int | None = None
    """What to quantize to while reading; None to keep the weights as they are."""

    def check(self) -> None:
        """Compare every name and shape.

        Raises:
            CheckpointError: one is wrong (the first is named), or the files are quantized and ``bits`` is set.
        """
        check(self.name, self.expected, self.found)
        if self.bits is not None and any(tensor.packed for tensor in self.expected.values()):
            raise CheckpointError(f"{self.name} is quantized already: use the checkpoint as it is, under its own name.")

    @property
    def file_bytes(self) -> int:
        """Bytes of the files that filling it reads."""
        loaded = (name for name, tensor in self.expected.items() if tensor.parameter is not None)
        return sum(self.found[name].nbytes for name in loaded if name in self.found)

    def fill(self, read: Callable[[int], None], tensor_reader: TensorReader = read_by_mlx) -> nn.Module:
        """Return the module with its weights, read now; call it once.

        Args:
            read: called with how many bytes are read, after each tensor.
            tensor_reader: reads them.

        Raises:
            CheckpointError: the files cannot be read.
        """
        quantize = None if self.bits is None else quantize_layers(self.module, self.bits)
        fill(self.name, self.module, self.expected, self.found, tensor_reader, quantize=quantize, read=read)
        if detect_device().kind == "cuda":
            replace_quantized_layers(self.module)
        return self.module


class LazyModules(Generic[Name]):
    """The modules of one checkpoint by name, each read by its reader when it is first used.

    ``drop`` frees a module's weights, and the next use reads the same bits again, or raises CheckpointError where the
    files have changed in between.
    """

    def __init__(self, readers: Mapping[Name, Reader], sizes: Mapping[Name, int], report: Report = no_report) -> None:
        """Take the readers, in the order in which ``load_all`` calls them.

        Args:
            readers: how to read each module.
            sizes: bytes of each module's files.
            report: told how far a reading is, whenever there is one.
        """
        self._readers = readers
        self._sizes = sizes
        self._report = report
        self._modules: dict[Name, nn.Module] = {}

    @property
    def resident(self) -> frozenset[Name]:
        """The modules whose weights are in memory."""
        return frozenset(self._modules)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weights that are in memory."""
        return sum(weights_bytes(module) for module in self._modules.values())

    def load_all(self) -> None:
        """Read what is not in memory yet."""
        self._read([name for name in self._readers if name not in self._modules])

    def drop(self, name: Name) -> None:
        """Free a module's weights; a reference that is still held elsewhere keeps them alive."""
        if self._modules.pop(name, None) is not None:
            gc.collect()
            mx.clear_cache()

    def _module(self, name: Name) -> nn.Module:
        if name not in self._modules:
            self._read([name])
        return self._modules[name]

    def _read(self, names: Sequence[Name]) -> None:
        before, total = 0, sum(self._sizes[name] for name in names)
        for name in names:

            def read(done: int, name: Name = name, before: int = before) -> None:
                if before + done < total:
                    self._report(name, before + done, total)

            self._report(name, before, total)
            self._modules[name] = self._readers[name](read)
            before += self._sizes[name]
        if names:
            self._report(names[-1], total, total)

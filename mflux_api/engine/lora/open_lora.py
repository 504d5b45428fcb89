"""One LoRA file, open: checked by its header, and read tensor by tensor from the one descriptor that was checked.

Nothing of it is mapped into memory, and no library opens it by its path again: a file that shrinks or is replaced
meanwhile is an error, and never a SIGBUS or another file's bytes.
"""

import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import mlx.core as mx
import numpy as np

from mflux_api.catalog.safetensors_rules import (
    PREFIX_BYTES,
    Header,
    SafetensorsRuleError,
    TensorPlace,
    header_bytes,
    read_header,
)
from mflux_api.ipc.printable import printable, sentence
from mflux_api.system.regular_files import NotRegularFile, open_regular

_NUMPY: Mapping[str, type[np.generic]] = {
    **{"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64, "BOOL": np.bool_},
    **{"F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16},
    **{"U32": np.uint32, "I32": np.int32, "U64": np.uint64, "I64": np.int64},
}
_KEPT = ("F32", "F16", "BF16")
"""The types that the engine computes with; others become float32, or float16 which holds all numbers of one byte."""
_CHUNK = 1 << 28


def _e4m3(byte: int) -> float:
    """Return a number of 4 bits exponent and 3 bits mantissa, which has no infinity (arXiv:2209.05433)."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if byte & 127 == 127:
        return math.nan
    size = mantissa / 512 if not exponent else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if byte & 128 else size


_EIGHT_BITS = {
    "F8_E4M3": np.array([_e4m3(byte) for byte in range(256)], dtype=np.float16),
    # The upper half of a float16.
    "F8_E5M2": (np.arange(256, dtype=np.uint16) << 8).view(np.float16),
}
"""The numbers of each byte."""


class LoraError(Exception):
    """The adapter cannot be used; the message is one sentence and names the file without its folder."""

    def __init__(self, message: str) -> None:
        # Names of layers and tensors are the file's.
        super().__init__(sentence(message))


class OpenLora:
    """An open file. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open the file and read its header.

        Raises:
            LoraError: it is missing, not a file, or breaks a rule of :mod:`mflux_api.catalog.safetensors_rules`.
        """
        self.name = printable(path.name, 80)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(open_regular(path))
            except FileNotFoundError:
                raise LoraError(f"The LoRA {self.name} does not exist.") from None
            except NotRegularFile:
                raise LoraError(f"The LoRA {self.name} is not a file.") from None
            except OSError:
                raise LoraError(f"The LoRA {self.name} cannot be opened: check its permissions.") from None
            self._descriptor = file.fileno()
            self._status = os.fstat(self._descriptor)
            self._header = self._read_header()
            self._open = stack.pop_all()

    def __enter__(self) -> "OpenLora":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def tensors(self) -> Mapping[str, TensorPlace]:
        """Its tensors by name."""
        return self._header.tensors

    @property
    def metadata(self) -> Mapping[str, str]:
        """What its maker wrote into it."""
        return self._header.metadata

    def read(self, name: str) -> mx.array:
        """Read one tensor, as floating-point numbers.

        Raises:
            LoraError: it is empty or of a type that is not computed with, the file cannot be read, or it is not what
                it was when it was opened.
        """
        place = self.tensors[name]
        if place.dtype not in _NUMPY:
            raise LoraError(
                f"The LoRA {self.name} holds {name} as {place.dtype}: save it as one of {', '.join(_KEPT)}."
            )
        if not place.size:
            raise LoraError(f"The LoRA {self.name} holds {name}, which is empty: save it again, or use another.")
        data = self._bytes(self._header.data_begin + place.begin, place.size)
        numbers = np.frombuffer(data, dtype=_NUMPY[place.dtype]).reshape(place.shape)
        if place.dtype == "BF16":
            return mx.array(numbers).view(mx.bfloat16)
        if place.dtype in _EIGHT_BITS:
            return mx.array(_EIGHT_BITS[place.dtype][numbers])
        if place.dtype in _KEPT:
            return mx.array(numbers)
        # What is too large for a float32 becomes infinite, and is refused as such.
        with np.errstate(over="ignore"):
            return mx.array(numbers.astype(np.float16 if numbers.itemsize == 1 else np.float32))

    def check_unchanged(self) -> None:
        """Check that what was read is one file's content.

        Raises:
            LoraError: it was written to meanwhile.
        """
        now = os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise self._changed()

    def _read_header(self) -> Header:
        size = self._status.st_size
        try:
            length = header_bytes(self._bytes(0, min(PREFIX_BYTES, size)), size)
            return read_header(self._bytes(PREFIX_BYTES, length), size)
        except SafetensorsRuleError as error:
            raise LoraError(f"The LoRA {self.name} cannot be used: {error}.") from None

    def _bytes(self, offset: int, count: int) -> bytearray:
        data = bytearray(count)
        done = 0
        with memoryview(data) as view:
            while done < count:
                try:
                    read = os.preadv(self._descriptor, [view[done : done + _CHUNK]], offset + done)
                except OSError:
                    raise LoraError(f"The LoRA {self.name} cannot be read from disk: download it again.") from None
                if not read:
                    raise self._changed()
                done += read
        return data

    def _changed(self) -> LoraError:
        return LoraError(f"The LoRA {self.name} was changed while it was read: try again when it is whole.")

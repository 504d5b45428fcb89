"""One LoRA file, open: checked by its header, and read tensor by tensor from the one descriptor that was checked.

Nothing of it is mapped into memory, and no library opens it by its path again: a file that shrinks or is replaced
meanwhile is an error, and never a SIGBUS or another file's bytes.
"""

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

_NUMPY: Mapping[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_CHUNK = 1 << 28


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
        """Read one tensor.

        Raises:
            LoraError: the file cannot be read, or is not what it was when it was opened.
        """
        place = self.tensors[name]
        data = self._bytes(self._header.data_begin + place.begin, place.size)
        numbers = np.frombuffer(data, dtype=_NUMPY[place.dtype]).reshape(place.shape)
        array = mx.array(numbers)
        return array.view(mx.bfloat16) if place.dtype == "BF16" else array

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

"""Tensors of safetensors files that are not read yet: what they are, and where in which file."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import attrs
import mlx.core as mx

from mflux_api.system.regular_files import open_regular


@attrs.frozen
class TensorFile:
    """A file as it was when its header was read."""

    path: Path
    stamp: tuple[int, ...]
    """Tells it from another one that took its place, and from one that was changed."""

    @classmethod
    def of(cls, path: Path, file: BinaryIO) -> "TensorFile":
        """Return the open file as it is now."""
        status = os.fstat(file.fileno())
        return cls(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))

    @contextmanager
    def open(self) -> Iterator[int]:
        """Open it again, and yield its descriptor.

        Raises:
            OSError: it cannot be read, or is another file now.
        """
        with open_regular(self.path) as file:
            if TensorFile.of(self.path, file) != self:
                raise OSError("it was changed")
            yield file.fileno()


@attrs.frozen(eq=False)
class StoredTensor:
    """One tensor of a file."""

    lazy: mx.array
    """MLX reads it when something is computed with it."""
    file: TensorFile
    offset: int
    """Where its bytes begin in the file, which are the array's."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the file."""
        return tuple(self.lazy.shape)

    @property
    def ndim(self) -> int:
        """How many sides it has."""
        return self.lazy.ndim

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.lazy.size

    @property
    def dtype(self) -> mx.Dtype:
        """The type of its numbers."""
        return self.lazy.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file and in memory."""
        return self.lazy.nbytes


TensorReader: TypeAlias = Callable[[deque[StoredTensor]], Generator[mx.array, None, None]]
"""Yields the tensors' arrays in their order, and empties the deque on the way; to be closed where it is not used up."""


def read_by_mlx(tensors: deque[StoredTensor]) -> Generator[mx.array, None, None]:
    """Yield arrays that MLX reads when something is computed with them."""
    while tensors:
        # Not held here: an array that was computed with keeps what was read for as long as it lives.
        yield tensors.popleft().lazy

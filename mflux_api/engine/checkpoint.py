"""Reading the files of a checkpoint folder: configurations and safetensors, with one error for all that is wrong."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import attrs
import mlx.core as mx
import msgspec

from mflux_api.catalog.files import (
    COMPANION_PREFIX,
    MAX_CONFIG_BYTES,
    MAX_INDEX_BYTES,
    TOKENIZER_FILES,
    WEIGHT_FILES,
    WEIGHT_INDEXES,
)
from mflux_api.catalog.safetensors_rules import CHECKPOINT, Header, NotWhole, SafetensorsRuleError, read_file
from mflux_api.engine.device import LIBRARY_ERRORS, is_out_of_memory
from mflux_api.engine.stored_tensors import StoredTensor, TensorFile
from mflux_api.ipc.printable import printable, sentence
from mflux_api.system.regular_files import FileTooLarge, NotRegularFile, open_regular

_MAX_TOKENIZER_BYTES = 64 << 20
"""Of each file; the largest of released models has 17 MB (FLUX.2-dev's tokenizer.json)."""


class CheckpointError(Exception):
    """The checkpoint cannot be used; the message is one sentence and names files relative to the checkpoint folder."""

    def __init__(self, message: str) -> None:
        # Names of tensors and values of configurations are the files'.
        super().__init__(sentence(message))


@contextmanager
def blaming(component: str, what: str) -> Iterator[None]:
    """Turn what libraries raise over a file into a :class:`CheckpointError`; want of memory stays what it is.

    Args:
        component: whose file it is.
        what: what the file has that cannot be used.
    """
    try:
        yield
    except LIBRARY_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{component}: the {what} cannot be used ({type(error).__name__}).") from None


@attrs.frozen
class JsonConfig:
    """One JSON object of a checkpoint, with typed access; every reader raises ``CheckpointError``."""

    name: str
    values: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int = 1 << 20) -> int:
        """Return the integer at ``key``, within [low, high]; ``default`` None makes the key required."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return the positive number at ``key``."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self._wrong(key, "a positive number")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """Return the boolean at ``key``."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def integers(self, key: str, default: tuple[int, ...] | None = None, *, low: int = 1) -> tuple[int, ...]:
        """Return the non-empty list of integers at ``key``, each at least ``low``."""
        value = self._value(key, default)
        if not isinstance(value, list | tuple) or not value:
            raise self._wrong(key, "a list of integers")
        if any(isinstance(item, bool) or not isinstance(item, int) or not low <= item <= 1 << 20 for item in value):
            raise self._wrong(key, f"a list of integers of at least {low}")
        return tuple(value)

    def section(self, key: str) -> "JsonConfig | None":
        """Return the object at ``key``, or None where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return JsonConfig(name=f"{self.name}, {key}", values=value)

    def demand(self, key: str, expected: object, default: object) -> None:
        """Refuse a checkpoint whose ``key`` is anything but ``expected``, the only value the engine computes with."""
        if self.values.get(key, default) != expected:
            raise self._wrong(key, f"{json.dumps(expected)}, the only value supported")

    def _value(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is None and default is None:
            raise CheckpointError(f"{self.name} lacks {key}.")
        return default if value is None else value

    def _wrong(self, key: str, expected: str) -> CheckpointError:
        found = json.dumps(self.values.get(key), default=str)
        return CheckpointError(f"{self.name}: {key} must be {expected}, and is {found[:80]}.")


def read_json(root: Path, name: str) -> JsonConfig:
    """Read the JSON object in the file ``name``, a path relative to ``root``.

    Raises:
        CheckpointError: the file is missing, unreadable, not JSON or not an object.
    """
    try:
        values = json.loads(_read_file(root, name, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not readable as JSON ({type(error).__name__}).") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{name} must hold a JSON object.")
    return JsonConfig(name=name, values=values)


def check_tokenizer_files(root: Path) -> None:
    """Check that a checkpoint's tokenizer can be given to libraries, which read its files without a limit.

    Raises:
        CheckpointError: the folder or a file that every tokenizer has is missing, or a file is too large.
    """
    for name in TOKENIZER_FILES:
        if not (root / "tokenizer" / name).is_file():
            raise CheckpointError(f"tokenizer/{name} is missing.")
    for path in (root / "tokenizer").iterdir():
        if not path.is_dir():
            with _open_file(root, f"tokenizer/{path.name}", _MAX_TOKENIZER_BYTES):
                pass


@contextmanager
def _open_file(root: Path, name: str, most: int | None = None) -> Iterator[BinaryIO]:
    """Open the regular file ``name``, a path relative to ``root``, of at most so many bytes.

    Raises:
        CheckpointError: it is missing, cannot be read, is not a file, or is larger.
    """
    try:
        with open_regular(root / name, most) as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{name} is missing.") from None
    except NotRegularFile:
        raise CheckpointError(f"{name} is not a file.") from None
    except FileTooLarge:
        raise CheckpointError(f"{name} is too large: more than {most} bytes.") from None
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read ({error.strerror or type(error).__name__}).") from None


def _read_file(root: Path, name: str, most: int) -> bytes:
    with _open_file(root, name, most) as file:
        return file.read(most)


@attrs.frozen(eq=False)
class Weights:
    """The tensors of one component."""

    tensors: dict[str, StoredTensor]
    """By the name in the files."""
    saved_by_mflux: bool
    """Whether it is mflux's saved layout (the module's own names and shapes, perhaps quantized) or diffusers'."""


def read_weights(root: Path, component: str) -> Weights:
    """Read every tensor of a component's safetensors files.

    An index file, where there is one, decides which files count; else all ``*.safetensors`` do.

    Raises:
        CheckpointError: files missing, truncated, corrupt or contradictory.
    """
    index, files = _weight_files(root, component)
    tensors: dict[str, StoredTensor] = {}
    owners: dict[str, str] = {}
    saved = index.saved_by_mflux
    for name in files:
        header, stored = _open_tensors(root, name)
        saved |= _has_mflux_marks(header.metadata)
        for key, tensor in stored.items():
            if key in owners:
                raise CheckpointError(f"{component}: {key} is in both {owners[key]} and {name}: keep one set of files.")
            owners[key] = name
            tensors[key] = tensor
    for key, name in index.located.items():
        if owners.get(key) != name:
            raise CheckpointError(f"{name} lacks {key}, which the index of {component} places there.")
    return Weights(tensors, saved)


def read_tensors(root: Path, name: str) -> dict[str, StoredTensor]:
    """Return every tensor of the safetensors file ``name``, a path relative to ``root``.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt.
    """
    return _open_tensors(root, name)[1]


@attrs.frozen
class _Index:
    located: Mapping[str, str]
    """The file of each tensor."""
    saved_by_mflux: bool


def _has_mflux_marks(metadata: Mapping[str, object]) -> bool:
    return "quantization_level" in metadata or "mflux_version" in metadata


def _weight_files(root: Path, component: str) -> tuple[_Index, list[str]]:
    folder = root / component
    if not folder.is_dir():
        raise CheckpointError(f"The folder {component} is missing.")
    indexes = _names(folder, WEIGHT_INDEXES)
    if len(indexes) > 1:
        raise CheckpointError(f"{component} has more than one index ({indexes[0]}, {indexes[1]}): keep one.")
    if indexes:
        index = _read_index(root, component, indexes[0])
        return index, sorted(set(index.located.values()))
    files = [f"{component}/{name}" for name in _names(folder, WEIGHT_FILES)]
    if not files:
        raise CheckpointError(f"{component} holds no safetensors files.")
    return _Index({}, saved_by_mflux=False), files


def _names(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern) if not path.name.startswith(COMPANION_PREFIX))


class _IndexFile(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: dict[str, msgspec.Raw] | None = None


def _read_index(root: Path, component: str, index: str) -> _Index:
    file = f"{component}/{index}"
    try:
        read = msgspec.json.decode(_read_file(root, file, MAX_INDEX_BYTES), type=_IndexFile)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise CheckpointError(f"{file} is not readable as an index of weights.") from None
    if not read.weight_map:
        raise CheckpointError(f"{file} names no weights.")
    for key, name in read.weight_map.items():
        # A name with a folder in it would read outside of the checkpoint.
        if PurePath(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{file} places {printable(key)} in something that is not a safetensors file beside it."
            )
    located = {key: f"{component}/{name}" for key, name in read.weight_map.items()}
    # Tools that copy a model may drop the files' own marks; mflux writes them here too.
    return _Index(located, saved_by_mflux=read.metadata is not None and _has_mflux_marks(read.metadata))


def _open_tensors(root: Path, name: str) -> tuple[Header, dict[str, StoredTensor]]:
    """Return a file's header, after checking that the file is whole, and its tensors.

    Raises:
        CheckpointError: the file is missing, truncated or not a safetensors file.
    """
    # Checked first: MLX would meet a missing end only while it computes.
    with _open_file(root, name) as opened:
        file, size = TensorFile.of(root / name, opened), os.fstat(opened.fileno()).st_size
        try:
            header = read_file(opened, size, CHECKPOINT)
        except NotWhole as error:
            what = "is not a safetensors file"
            if error.expected_bytes is not None:
                what = f"has {size} bytes and should have {error.expected_bytes}"
            raise CheckpointError(f"{name} {what}: download it again.") from None
        except SafetensorsRuleError as error:
            raise CheckpointError(f"{name} cannot be used: {error}.") from None
    try:
        loaded = mx.load(str(root / name))
    except (RuntimeError, ValueError, OSError):
        raise CheckpointError(f"{name} holds a tensor of a type that MLX cannot read.") from None
    if not isinstance(loaded, dict) or loaded.keys() != header.tensors.keys():
        raise CheckpointError(f"{name} was changed while it was read: try again when it is whole.")
    return header, {
        key: StoredTensor(array, file, header.data_begin + header.tensors[key].begin) for key, array in loaded.items()
    }

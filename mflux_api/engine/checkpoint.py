"""Reading the files of a checkpoint folder: configurations and safetensors, with one error for all that is wrong."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import attrs
import mlx.core as mx

from mflux_api.catalog.files import COMPANION_PREFIX, MAX_HEADER_BYTES, WEIGHT_FILES, WEIGHT_INDEXES

_MAX_JSON_BYTES = 64 << 20


class CheckpointError(Exception):
    """The checkpoint cannot be used; the message is one sentence and names files relative to the checkpoint folder."""


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
    file = root / name
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{name} is too large for a configuration file.")
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{name} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not readable as JSON ({type(error).__name__}).") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{name} must hold a JSON object.")
    return JsonConfig(name=name, values=values)


@attrs.frozen(eq=False)
class Weights:
    """The tensors of one component."""

    tensors: dict[str, mx.array]
    """By the name in the files; not yet read from disk (MLX loads lazily)."""
    saved_by_mflux: bool
    """Whether it is mflux's saved layout (the module's own names and shapes, perhaps quantized) or diffusers'."""


def read_weights(root: Path, component: str) -> Weights:
    """Read every tensor of a component's safetensors files.

    An index file, where there is one, decides which files count; else all ``*.safetensors`` do.

    Raises:
        CheckpointError: files missing, truncated, corrupt or contradictory.
    """
    index, files = _weight_files(root, component)
    tensors: dict[str, mx.array] = {}
    owners: dict[str, str] = {}
    saved = index.saved_by_mflux
    for name in files:
        # Checked first: MLX would meet a missing end only while it computes.
        saved |= _has_mflux_marks(_check_metadata(root, name))
        for key, tensor in _read_safetensors(root, name).items():
            if key in owners:
                raise CheckpointError(f"{component}: {key} is in both {owners[key]} and {name}: keep one set of files.")
            owners[key] = name
            tensors[key] = tensor
    for key, name in index.located.items():
        if owners.get(key) != name:
            raise CheckpointError(f"{name} lacks {key}, which the index of {component} places there.")
    return Weights(tensors, saved)


def read_tensors(root: Path, name: str) -> dict[str, mx.array]:
    """Read every tensor of the safetensors file ``name``, a path relative to ``root``; not yet read from disk.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt.
    """
    _check_metadata(root, name)
    return _read_safetensors(root, name)


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


def _read_index(root: Path, component: str, index: str) -> _Index:
    config = read_json(root, f"{component}/{index}")
    weight_map = config.section("weight_map")
    if weight_map is None or not weight_map.values:
        raise CheckpointError(f"{config.name} names no weights.")
    located: dict[str, str] = {}
    for key, name in weight_map.values.items():
        # A name with a folder in it would read outside of the checkpoint.
        if not isinstance(name, str) or PurePath(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{config.name} places {key} in something that is not a safetensors file beside it.")
        located[key] = f"{component}/{name}"
    metadata = config.section("metadata")
    # Tools that copy a model may drop the files' own marks; mflux writes them here too.
    return _Index(located, saved_by_mflux=metadata is not None and _has_mflux_marks(metadata.values))


def _read_safetensors(root: Path, name: str) -> dict[str, mx.array]:
    try:
        loaded = mx.load(str(root / name))
    except (RuntimeError, ValueError, OSError):
        raise CheckpointError(f"{name} holds a tensor of a type that MLX cannot read.") from None
    return loaded if isinstance(loaded, dict) else {}


def _check_metadata(root: Path, name: str) -> Mapping[str, object]:
    """Return the free-form part of a safetensors file's header, after checking that the file is whole.

    Raises:
        CheckpointError: the file is missing, truncated or not a safetensors file.
    """
    file = root / name
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            header = json.loads(stream.read(length)) if 0 < length <= min(size, MAX_HEADER_BYTES) else None
        if not isinstance(header, dict):
            raise ValueError("no header")
        metadata = header.pop("__metadata__", {})
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except FileNotFoundError:
        raise CheckpointError(f"{name} is missing.") from None
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise CheckpointError(f"{name} is not a safetensors file: download it again.") from None
    if 8 + length + end != size:
        raise CheckpointError(f"{name} has {size} bytes and should have {8 + length + end}: download it again.")
    return metadata if isinstance(metadata, dict) else {}

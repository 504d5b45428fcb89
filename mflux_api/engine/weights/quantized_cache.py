"""Weights quantized on this machine: made once, kept on disk under a marker with checksums, loaded from there.

An entry is a folder in mflux's saved layout, with the configuration files that mflux leaves out, so it is a checkpoint
of its own. It appears whole or not at all, one process makes it while the others wait, and a checksum of every file is
compared before it is used: an entry that is damaged or belongs to other weights is made again.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mflux.models.common.config.model_config import ModelConfig
from mlx import nn

from mflux_api.catalog.files import (
    COMPONENTS,
    CONFIG_FILE,
    GROUP_SIZE,
    MODEL_INDEX,
    OUT_LAYERS_KEY,
    SAVED_INDEX,
    SEQUENCE_LENGTH_KEY,
    WEIGHT_FILES,
    ComponentName,
)
from mflux_api.engine.checkpoint import read_weights
from mflux_api.engine.device import is_out_of_memory
from mflux_api.engine.stored_tensors import TensorReader, read_by_mlx
from mflux_api.engine.weights.components import CheckpointError, Components, load_components
from mflux_api.engine.weights.parameters import COMPUTED, named_arrays
from mflux_api.engine.weights.reading import Report, no_report
from mflux_api.system.durable import make_folder, sync_file, sync_folder, sync_folders_below

MARKER = "mflux-api.json"
"""Says what an entry was made from; written last."""

_FORMAT = 1
_SHARD_BYTES = 2 << 30
_CHUNK_BYTES = 16 << 20
_MIN_FREE_BYTES = 256 << 20
_LOCK_SECONDS = 0.5
"""Between two tries for an entry that another process makes."""
_CONFIGURATION = (MODEL_INDEX, *(f"{component}/{CONFIG_FILE}" for component in COMPONENTS))


Warn = Callable[[str], None]


def load_quantized(
    source: Path,
    bits: int,
    entry: Path,
    *,
    component_offload: bool = False,
    warn: Warn = lambda text: None,
    report: Report = no_report,
    tensor_reader: TensorReader = read_by_mlx,
) -> Components:
    """Load ``source`` in ``bits`` bits from ``entry``, making or repairing the entry first where that is needed.

    Where the entry cannot be kept (a full disk, a folder that cannot be written) the weights are quantized in memory.

    Args:
        source: the checkpoint with the full weights.
        bits: 3, 4, 6 or 8.
        entry: the folder of the quantized weights.
        component_offload: check everything now and read each component's weights only when it is used.
        warn: called with a clause, without paths, for what an operator should know.
        report: told how far it is, now and whenever a component is read again.
        tensor_reader: reads the tensors, each time.

    Raises:
        CheckpointError: ``source`` cannot be used, or there is neither a source nor an entry.
    """
    made_from = _identity(source, bits)

    def load(folder: Path, bits: int | None = None) -> Components:
        return load_components(
            folder, bits=bits, component_offload=component_offload, report=report, tensor_reader=tensor_reader
        )

    components = _load_whole(entry, made_from, load, warn, report)
    if components is not None:
        return components
    if made_from is None:
        raise CheckpointError(f"There is no checkpoint folder {source.name}.")
    try:
        with _single_writer(entry, report):
            # The process that held the lock may have made it.
            components = _load_whole(entry, made_from, load, warn, report)
            if components is None:
                _make(source, bits, entry, made_from, report, tensor_reader)
                components = load(entry)
            return components
    except (OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        warn(f"its quantized weights cannot be kept in models.cache_dir ({reason}), so every load makes them again")
        return load(source, bits=bits)


def _load_whole(
    entry: Path,
    made_from: Mapping[str, Any] | None,
    load: Callable[[Path], Components],
    warn: Warn,
    report: Report,
) -> Components | None:
    if not _is_whole(entry, made_from, report):
        if (entry / MARKER).is_file():
            warn("its kept quantized weights are damaged or belong to other weights")
        return None
    try:
        return load(entry)
    except CheckpointError as error:
        warn(f"its kept quantized weights cannot be used: {error}")
        return None


def _make(
    source: Path, bits: int, entry: Path, made_from: Mapping[str, Any], report: Report, tensor_reader: TensorReader
) -> None:
    for leftover in entry.parent.glob(f".{entry.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = entry.parent / f".{entry.name}.{secrets.token_hex(6)}.partial"
    try:
        partial.mkdir()
        components = load_components(
            source, bits=bits, component_offload=True, report=report, tensor_reader=tensor_reader
        )
        for name in COMPONENTS:
            # One after another: the memory never holds more than one component.
            _save_component(getattr(components, name), bits, partial / name, report)
            components.drop(name)
            _check_written(partial, name)
        _copy_configuration(source, partial, components)
        checksums = _checksums(partial, _files(partial), report)
        (partial / MARKER).write_text(json.dumps({"made_from": made_from, "files": checksums}, indent=1), "utf-8")
        for file in (*_files(partial), MARKER):
            sync_file(partial / file)
            report("saving", 0, 0)
        sync_folders_below(partial)
        _put_in_place(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save_component(module: nn.Module, bits: int, folder: Path, report: Report) -> None:
    """Write a module as mflux's ModelSaver does: numbered shards and an index of them.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    folder.mkdir()
    size = sum(array.nbytes for _, array in named_arrays(module))
    if shutil.disk_usage(folder).free < size + _MIN_FREE_BYTES:
        # Filling the disk to the last byte would take it from every other program.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    metadata = {"quantization_level": str(bits), "mflux_version": version("mflux")}
    shards: list[dict[str, mx.array]] = [{}]
    size = 0
    for name, array in named_arrays(module):
        if name in COMPUTED:
            continue
        if shards[-1] and size + array.nbytes > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    for number, shard in enumerate(shards):
        mx.save_safetensors(str(folder / f"{number}.safetensors"), shard, metadata)
        report("saving", 0, 0)
    located = {name: f"{number}.safetensors" for number, shard in enumerate(shards) for name in shard}
    index = json.dumps({"metadata": metadata, "weight_map": located}, indent=1)
    (folder / SAVED_INDEX).write_text(index, "utf-8")


def _check_written(folder: Path, name: ComponentName) -> None:
    """Read back what was written, because MLX does not always report what a disk did not take.

    Raises:
        OSError: a file is missing or incomplete.
    """
    try:
        read_weights(folder, name)
    except CheckpointError as error:
        raise OSError(str(error)) from None


def _copy_configuration(source: Path, target: Path, components: Components) -> None:
    for name in _CONFIGURATION:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if not (target / MODEL_INDEX).is_file():
        info = components.info
        index = {
            OUT_LAYERS_KEY: list(info.text_encoder_out_layers),
            SEQUENCE_LENGTH_KEY: info.max_sequence_length,
        }
        (target / MODEL_INDEX).write_text(json.dumps(index), "utf-8")
    # File by file: a hub's cache has links here, and the entry must outlive what they point to.
    (target / "tokenizer").mkdir()
    for file in sorted((source / "tokenizer").iterdir()):
        if file.is_file():
            shutil.copyfile(file, target / "tokenizer" / file.name)


def _put_in_place(partial: Path, entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        # A folder cannot be renamed onto one that holds files.
        old = entry.parent / f".{entry.name}.{secrets.token_hex(6)}.partial"
        entry.rename(old)
        partial.rename(entry)
        shutil.rmtree(old, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
        partial.rename(entry)
    sync_folder(entry.parent)


def _is_whole(entry: Path, made_from: Mapping[str, Any] | None, report: Report) -> bool:
    """Whether the entry has every file as it was written, from these weights (from any, when they are gone)."""
    try:
        marker = json.loads((entry / MARKER).read_bytes())
        files = marker["files"]
        if made_from is not None and marker["made_from"] != json.loads(json.dumps(made_from)):
            return False
        return bool(files) and _checksums(entry, list(files), report) == files
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def _identity(source: Path, bits: int) -> dict[str, Any] | None:
    """What the quantized weights depend on: another file, another size or another time of change is another source."""
    names = [name for name in _CONFIGURATION if (source / name).is_file()]
    for component in COMPONENTS:
        names += [_relative(source, file) for file in (source / component).glob(WEIGHT_FILES)]
    if not any(name.endswith(".safetensors") for name in names):
        return None
    stats = {name: (source / name).stat() for name in sorted(names)}
    return {
        "format": _FORMAT,
        "bits": bits,
        "group_size": GROUP_SIZE,
        "precision": str(ModelConfig.precision),
        "source": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }


def _files(folder: Path) -> list[str]:
    return sorted(_relative(folder, path) for path in folder.rglob("*") if path.is_file() and path.name != MARKER)


def _relative(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix()


def _checksums(folder: Path, names: list[str], report: Report) -> dict[str, list[int]]:
    """Size and CRC-32 of each file; that finds what a disk or a hand damages, at the speed of the disk."""
    total = sum((folder / name).stat().st_size for name in names)
    done = 0
    counting = threading.Lock()

    def read(name: str) -> list[int]:
        nonlocal done
        size = checksum = 0
        with (folder / name).open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                size += len(chunk)
                checksum = zlib.crc32(chunk, checksum)
                with counting:
                    done += len(chunk)
                    report("checksums", done, total)
        return [size, checksum]

    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="checksum") as threads:
        return dict(zip(names, threads.map(read, names), strict=True))


@contextmanager
def _single_writer(entry: Path, report: Report) -> Iterator[None]:
    """Hold the entry's lock; another process that makes the same entry is waited for.

    Raises:
        OSError: the folder cannot be written.
    """
    make_folder(entry.parent)
    handle = os.open(entry.parent / f".{entry.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # A process that hangs over it is ended by its own service, and one that ends lets go.
                report("waiting", 0, 0)
                time.sleep(_LOCK_SECONDS)
            else:
                break
        yield
    finally:
        os.close(handle)

"""Writing a random-weights FLUX.2 Klein checkpoint in diffusers' layout, the same bytes from a seed on every machine.

diffusers, transformers and this engine all load the folder. Nothing here imports MLX, mflux, torch or transformers.
"""

import json
import math
import secrets
import shutil
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mflux_api.catalog.files import CONFIG_FILE, MODEL_INDEX
from mflux_api.engine.demo import layout
from mflux_api.engine.demo.byte_tokenizer import write_tokenizer
from mflux_api.engine.demo.layout import CheckpointShape
from mflux_api.system.durable import sync

__all__ = ["CheckpointShape", "Dtype", "write_random_checkpoint"]

Dtype = Literal["bfloat16", "float32"]


def write_random_checkpoint(
    folder: Path, shape: CheckpointShape | None = None, *, seed: int = 0, dtype: Dtype = "bfloat16"
) -> Path:
    """Write a checkpoint to ``folder`` unless a complete one is there, and return ``folder``.

    It is written beside the target and renamed, so a folder of that name is always complete.

    Raises:
        FileExistsError: ``folder`` exists and is not a checkpoint.
    """
    if _is_complete(folder):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder.name} exists and is not a checkpoint: choose another folder or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.{secrets.token_hex(6)}.partial"
    try:
        _write(partial, shape or CheckpointShape(), seed, dtype)
        try:
            partial.rename(folder)
        except OSError:
            # Another process was faster; its bytes are the same.
            if not _is_complete(folder):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_complete(folder: Path) -> bool:
    return (folder / MODEL_INDEX).is_file()


def _write(folder: Path, shape: CheckpointShape, seed: int, dtype: Dtype) -> None:
    components = {
        "transformer": (
            "diffusion_pytorch_model.safetensors",
            layout.transformer_config(shape),
            layout.transformer_tensors(shape),
        ),
        "vae": ("diffusion_pytorch_model.safetensors", layout.vae_config(shape), layout.vae_tensors(shape)),
        "text_encoder": (
            "model.safetensors",
            layout.text_encoder_config(shape, dtype),
            layout.text_encoder_tensors(shape),
        ),
    }
    for component, (file, config, tensors) in components.items():
        (folder / component).mkdir(parents=True)
        _write_json(folder / component / CONFIG_FILE, config)
        arrays = {name: _values(f"{component}/{name}", dims, std, seed) for name, dims, std in tensors}
        _write_safetensors(folder / component / file, arrays, dtype)
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", layout.scheduler_config())
    (folder / "tokenizer").mkdir()
    write_tokenizer(folder / "tokenizer", shape.max_sequence_length)
    _write_json(folder / MODEL_INDEX, layout.model_index(shape))


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _values(name: str, shape: tuple[int, ...], std: float, seed: int) -> npt.NDArray[np.float32]:
    if std in (layout.ZEROS, layout.ONES):
        return np.full(shape, 0.0 if std == layout.ZEROS else 1.0, dtype=np.float32)
    # One stream per tensor, so that its values do not depend on which other tensors the shape has. Uniform values are
    # exact arithmetic on 24 random bits, where a normal distribution would go through each platform's math library.
    random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    values = random.random(shape, dtype=np.float32)
    values -= np.float32(0.5)
    values *= np.float32(std * math.sqrt(12.0))
    return values


def _write_safetensors(file: Path, arrays: Mapping[str, npt.NDArray[np.float32]], dtype: Dtype) -> None:
    """Write header length, JSON header, little-endian tensors (https://huggingface.co/docs/safetensors)."""
    size = 2 if dtype == "bfloat16" else 4
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.size * size
        header[name] = {
            "dtype": "BF16" if dtype == "bfloat16" else "F32",
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        for array in arrays.values():
            stream.write((_bfloat16(array) if dtype == "bfloat16" else array.astype("<f4", copy=False)).tobytes())
        stream.flush()
        sync(stream.fileno())


def _bfloat16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the upper halves of float32 values, rounded to nearest even; the values here are all finite."""
    bits = array.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype("<u2")

"""How much memory a checkpoint will take, from the headers of its files alone.

The serving process never loads the model code, so it reads what the safetensors format
(https://huggingface.co/docs/safetensors) says of each tensor: a type and a shape.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import msgspec

from mflux_api.catalog.files import (
    COMPANION_PREFIX,
    COMPONENTS,
    CONFIG_FILE,
    DEV_LANGUAGE_MODEL,
    DEV_MODEL_TYPE,
    DEV_NOT_NEEDED,
    DEV_OUT_LAYERS,
    GROUP_SIZE,
    KLEIN_OUT_LAYERS,
    MAX_CONFIG_BYTES,
    MAX_INDEX_BYTES,
    MODEL_INDEX,
    OUT_LAYERS_KEY,
    UPSCALER_FILES,
    WEIGHT_FILES,
    WEIGHT_INDEXES,
)
from mflux_api.catalog.safetensors_rules import CHECKPOINT, SafetensorsRuleError, TensorPlace, read_file
from mflux_api.system.regular_files import open_regular, read_regular


@attrs.frozen
class Footprint:
    """Bytes of a model's weights in memory."""

    whole: int
    """All components at once."""
    component_offload: int
    """The largest component alone, which is all that ``low_ram`` keeps."""
    alternating_offload: int | None = None
    """The VAE and the larger of the other two, for a model whose text encoder and transformer may take turns where
    there is no room for both (FLUX.2-dev); ``None`` for any other."""
    unpacked: int | None = None
    """All components with the transformer's quantized weights unpacked; ``None`` where it has none."""

    def bytes_for(self, *, low_ram: bool) -> int:
        """Return the bytes that a job needs."""
        return self.component_offload if low_ram else self.whole


def measure(folder: Path, *, float_bytes: int, bits: int | None = None) -> Footprint | None:
    """Read what the checkpoint in ``folder`` will take; ``None`` where that cannot be told.

    Takes a few file accesses per shard: call it in a thread.

    Args:
        folder: diffusers' layout or mflux's saved layout.
        float_bytes: bytes of a number in the engine's precision, whatever the files hold.
        bits: what the weights are quantized to when they are loaded.
    """
    try:
        if (folder / UPSCALER_FILES["transformer"]).is_file():
            parts = [
                sum(_tensor_bytes(name, tensor, float_bytes, None) for name, tensor in _tensors(folder / file))
                for file in UPSCALER_FILES.values()
            ]
            return Footprint(whole=sum(parts), component_offload=max(parts))
        dev = _is_dev(folder)
        used_layers = _used_text_layers(folder, DEV_OUT_LAYERS if dev else KLEIN_OUT_LAYERS)
        sizes = {}
        unpacked = 0
        for component in COMPONENTS:
            files = _weight_files(folder / component)
            if not files:
                return None
            tensors = {
                name: tensor
                for file in files
                for name, tensor in _tensors(file)
                if component != "text_encoder" or _is_used(name, used_layers, dev=dev)
            }
            sizes[component] = sum(_tensor_bytes(name, tensor, float_bytes, bits) for name, tensor in tensors.items())
            if component == "transformer":
                unpacked = sum(_unpacked_bytes(name, tensor, tensors, float_bytes) for name, tensor in tensors.items())
        whole = sum(sizes.values())
        return Footprint(
            whole=whole,
            component_offload=max(sizes.values()),
            alternating_offload=whole - min(sizes["text_encoder"], sizes["transformer"]) if dev else None,
            unpacked=whole - sizes["transformer"] + unpacked if unpacked != sizes["transformer"] else None,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorsRuleError):
        return None


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _weight_files(folder: Path) -> list[Path]:
    indexes = sorted(folder.glob(WEIGHT_INDEXES))
    if indexes:
        # As general JSON a large one would hold the interpreter for seconds, and with it every answer.
        names = set(msgspec.json.decode(read_regular(indexes[0], MAX_INDEX_BYTES), type=_Index).weight_map.values())
        return [folder / Path(name).name for name in sorted(names)]
    return sorted(path for path in folder.glob(WEIGHT_FILES) if not path.name.startswith(COMPANION_PREFIX))


def _tensors(file: Path) -> Iterable[tuple[str, TensorPlace]]:
    with open_regular(file) as stream:
        return read_file(stream, os.fstat(stream.fileno()).st_size, CHECKPOINT).tensors.items()


def _tensor_bytes(name: str, tensor: TensorPlace, float_bytes: int, bits: int | None) -> int:
    shape = tensor.shape
    count = int(math.prod(shape))
    if not tensor.dtype.startswith(("F", "BF")):
        return tensor.size
    if bits is None or len(shape) != 2 or not name.endswith(".weight") or shape[-1] % GROUP_SIZE:
        return count * float_bytes
    # Two numbers, a scale and a bias, for every group.
    return count * bits // 8 + count // GROUP_SIZE * 2 * float_bytes


def _unpacked_bytes(name: str, tensor: TensorPlace, tensors: Mapping[str, TensorPlace], float_bytes: int) -> int:
    """Return what a tensor takes once quantized layers have whole numbers: those stand in the place of the scales."""
    layer, _, part = name.rpartition(".")
    count = int(math.prod(tensor.shape))
    if f"{layer}.scales" in tensors:
        return {"scales": count * GROUP_SIZE * float_bytes, "weight": 0, "biases": 0}.get(part, count * float_bytes)
    return _tensor_bytes(name, tensor, float_bytes, None)


def _is_dev(folder: Path) -> bool:
    file = folder / "text_encoder" / CONFIG_FILE
    return file.is_file() and _json(file).get("model_type") == DEV_MODEL_TYPE


def _json(file: Path) -> Any:
    return json.loads(read_regular(file, MAX_CONFIG_BYTES))


def _used_text_layers(folder: Path, default: tuple[int, ...]) -> int:
    file = folder / MODEL_INDEX
    index = _json(file) if file.is_file() else {}
    return int(max(index.get(OUT_LAYERS_KEY) or default))


def _is_used(name: str, used_layers: int, *, dev: bool) -> bool:
    if dev and (DEV_NOT_NEEDED.match(name) or _is_last_norm(name)):
        return False
    _, found, rest = name.partition("layers.")
    number = rest.partition(".")[0]
    return name != "lm_head.weight" and not (found and number.isdigit() and int(number) >= used_layers)


def _is_last_norm(name: str) -> bool:
    """Whether this is the norm after Mistral's last layer, which comes after every output that conditions the image."""
    prefix = DEV_LANGUAGE_MODEL.match(name)
    return prefix is not None and name.startswith("norm.", prefix.end())

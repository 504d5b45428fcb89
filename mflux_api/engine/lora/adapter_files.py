"""Reading an adapter's file: tensors of any trainer's spelling become updates per layer of mflux's transformer.

Which names are known is in :mod:`mflux_api.catalog.lora_tensors`. The splitting of fused layers and the meaning of
alpha are mflux's (``LoRALoader``, ``PeftLoRAMetadata``). Nothing here looks at a model, so nothing is checked against
one yet.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs
import mlx.core as mx
from mflux.models.common.lora.mapping.peft_lora_metadata import PeftLoRAMetadata

from mflux_api.catalog.lora_layers import CHECKPOINT_KIND, LoraNames, other_model, sort_names
from mflux_api.catalog.lora_tensors import PARTS_OF_RANK, Rows, Target
from mflux_api.engine.device import LIBRARY_ERRORS, is_out_of_memory
from mflux_api.engine.lora.factors import Factors, UnusableParts, cut, updates
from mflux_api.engine.lora.open_lora import LoraError, OpenLora
from mflux_api.ipc.printable import printable
from mflux_api.system.regular_files import read_regular

__all__ = ["Adapter", "LoraError", "blaming", "config_of", "read_adapter"]

_WORD = re.compile(r"\w+")
_ANY_BLOCK = ("\\d+", "[0-9]+")
_PEFT_WRAPPER = "base_model.model."
_PEFT_FILE = "adapter_model.safetensors"
_PEFT_CONFIG = "adapter_config.json"
"""PEFT's ``save_pretrained`` writes both into one folder, and alpha into the latter alone."""
_MAX_CONFIG_BYTES = 1 << 20
_FIRST = (*PARTS_OF_RANK, "lokr_w1")
"""Parts by which a layer's kind is known."""
_MAX_PATTERNS = 512
"""Each is matched with each layer; ``re`` keeps so many compiled. FLUX.2-dev has 192 layers with a LoRA."""


@attrs.frozen
class Adapter:
    """What a file holds."""

    updates: Mapping[str, tuple[Factors, ...]]
    """By the path of the layer in mflux's ``Flux2Transformer``."""
    names: LoraNames
    other_model: str | None
    """The model that its metadata names, where that is not FLUX.2."""
    sharing: Mapping[str, tuple[str, ...]] = attrs.Factory(dict)
    """By a layer's path the paths of all layers, itself among them, whose inputs have one magnitude together."""


@attrs.define(eq=False)
class _Layer:
    """The parts of one layer's update, as far as they were read."""

    parts: dict[str, mx.array] = attrs.Factory(dict)
    keys: dict[str, str] = attrs.Factory(dict)
    """The tensor that each part comes from."""
    rows: set[Rows] = attrs.Factory(set)


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Turn what libraries raise over an adapter into a :class:`LoraError`; want of memory stays what it is.

    Args:
        name: the file, without its folder.
    """
    try:
        yield
    except LIBRARY_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise LoraError(
            f"The LoRA {printable(name, 80)} cannot be read ({type(error).__name__}): download it again."
        ) from None


def read_adapter(path: Path) -> Adapter:
    """Read an adapter from a safetensors file.

    Raises:
        LoraError: the file is missing, damaged, or holds nothing for FLUX.2 Klein.
    """
    with blaming(path.name), OpenLora(path) as file:
        names = sort_names(file.tensors)
        if not names.used:
            raise LoraError(nothing_known(file.name, names))
        layers: dict[str, _Layer] = defaultdict(_Layer)
        sharing: dict[str, tuple[str, ...]] = {}
        for key, name in names.used.items():
            tensor = file.read(key)
            for target in name.targets:
                _add(file.name, layers[target.path], key, name.part or "", tensor, target)
                if (
                    name.part == "magnitude"
                    and len(name.targets) > 1
                    and layers[target.path].parts["magnitude"].shape[0] == 1
                ):
                    sharing[target.path] = tuple(each.path for each in name.targets)
        _fill_alpha(file, layers, names, _alpha_metadata(file, path))
        found = {path: _updates(file.name, path, layer) for path, layer in layers.items()}
        file.check_unchanged()
        return Adapter(found, names, other_model(file.metadata), sharing)


def nothing_known(name: str, names: LoraNames) -> str:
    """Say why too little of a file can be used.

    Args:
        name: the file, printable.
        names: what is in it.
    """
    kinds = [kind for kind in names.unsupported if kind != CHECKPOINT_KIND]
    if kinds and not names.understood:
        return f"The LoRA {name} is of a kind that is not supported ({kinds[0]}): use a LoRA, LoKr or LoHa."
    if names.unsupported and not names.understood:
        return f"The LoRA {name} holds whole weights and no updates: it is a checkpoint, so use a LoRA made from it."
    if not names.layers and names.text_encoder_layers:
        return (
            f"The LoRA {name} changes a text encoder and no layer of the transformer, and only the transformer's are "
            "used here: use another."
        )
    examples = ", ".join(names.examples)
    if not examples:
        return f"The LoRA {name} holds single numbers and no updates: use another."
    if not names.understood:
        return (
            f"The LoRA {name} holds no update for FLUX.2 that could be read: its names are not known, for example "
            f"{examples}; save it in the format of diffusers or of kohya."
        )
    others = f"the others are of a kind that is not supported ({kinds[0]})" if kinds else "the other names are not"
    return (
        f"The LoRA {name} is not used, because {names.understood} of its {names.layers} layers are known and {others}, "
        f"for example {examples}; save it in the format of diffusers or of kohya."
    )


def _add(name: str, layer: _Layer, key: str, part: str, tensor: mx.array, target: Target) -> None:
    if layer.keys.setdefault(part, key) != key:
        raise LoraError(f"The LoRA {name} holds two updates for {target.path}: {key} and {layer.keys[part]}.")
    try:
        layer.parts[part] = cut(part, tensor, target.rows)
    except ValueError as error:
        raise LoraError(f"The LoRA {name} holds {key} with shape {tuple(tensor.shape)}: {error}.") from None
    layer.rows.add(target.rows)


def config_of(path: Path) -> Path | None:
    """Return where PEFT keeps the alpha of an adapter's file, if it is one of its own; the path may lead to nothing."""
    return path.with_name(_PEFT_CONFIG) if path.name == _PEFT_FILE else None


def _alpha_metadata(file: OpenLora, path: Path) -> Mapping[str, str]:
    """Return the metadata that may hold alpha: the file's, or what PEFT keeps beside it.

    Raises:
        LoraError: what is beside it cannot be read.
    """
    config = config_of(path)
    if config is None or PeftLoRAMetadata.METADATA_KEY in file.metadata:
        return file.metadata
    try:
        content = json.loads(read_regular(config, _MAX_CONFIG_BYTES))
        if content.get("peft_type") in ("LOHA", "LOKR"):
            # PEFT multiplies by alpha / r, also where factors are whole matrices.
            content = {"lora_alpha": content["alpha"], "r": content["r"], "alpha_pattern": content.get("alpha_pattern")}
        return {PeftLoRAMetadata.METADATA_KEY: json.dumps(content)}
    except FileNotFoundError:
        return file.metadata
    except (OSError, ValueError, AttributeError, KeyError, RecursionError):
        raise LoraError(
            f"The {_PEFT_CONFIG} beside the LoRA {file.name} cannot be read, and alpha is in it: save both again."
        ) from None


def _fill_alpha(file: OpenLora, layers: Mapping[str, _Layer], names: LoraNames, metadata: Mapping[str, str]) -> None:
    """Take alpha from PEFT's metadata for layers that have none of their own."""
    try:
        # mflux passes over what is not JSON, and alpha would be lost with it.
        json.loads(metadata.get(PeftLoRAMetadata.METADATA_KEY) or "null")
        configs = PeftLoRAMetadata.configs(dict(metadata))
        # A LoRA of both may have left the prefixes out, so that a layer's name does not say whose it is.
        configs = {
            part: config
            for part, config in configs.items()
            if not part.startswith("text_encoder") and config["lora_alpha"] is not None
        }
        patterns = [pattern for config in configs.values() for pattern in config.get("alpha_pattern") or {}]
        if len(patterns) > _MAX_PATTERNS or not all(map(_matches_quickly, patterns)):
            raise LoraError(
                f"The LoRA {file.name} has an alpha pattern of more than modules' names, \\d+ and (a|b), or over "
                f"{_MAX_PATTERNS} patterns."
            )
        # What diffusers writes into a file is of LoRAs alone.
        kinds = _FIRST[:1] if PeftLoRAMetadata.METADATA_KEY in file.metadata else _FIRST
        for layer in layers.values() if configs else ():
            first = next((part for part in kinds if part in layer.parts), None)
            if "alpha" in layer.parts or first is None:
                continue
            # PEFT's patterns are of names in the model that it wraps.
            spelled = f"{names.used[layer.keys[first]].layer.removeprefix(_PEFT_WRAPPER)}.lora_A.weight"
            alpha = PeftLoRAMetadata.alpha(spelled, configs, layer.parts[first].shape[0])
            if alpha is None:
                continue
            if first == "lokr_w1" and "lokr_w2" in layer.parts:
                layer.parts[first] = layer.parts[first].astype(mx.float32) * (alpha / float(configs[""]["r"]))
            else:
                layer.parts["alpha"] = mx.array(alpha)
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError, IndexError, re.error, RecursionError):
        raise LoraError(f"The LoRA {file.name} has metadata that cannot be read: save it again.") from None


def _matches_quickly(pattern: str) -> bool:
    """Whether a pattern of PEFT's is made of modules' names alone; an arbitrary one could take forever to match."""
    names = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".").split(".")
    choices = (name.removeprefix("(").removesuffix(")").split("|") for name in names if name not in _ANY_BLOCK)
    return all(_WORD.fullmatch(word) for choice in choices for word in choice)


def _updates(name: str, path: str, layer: _Layer) -> tuple[Factors, ...]:
    try:
        return tuple(updates(layer.parts, layer.rows))
    except KeyError:
        raise LoraError(f"The LoRA {name} holds no complete update for {path}.") from None
    except UnusableParts as error:
        raise LoraError(f"The LoRA {name} holds an update for {path} that cannot be used: {error}.") from None
    except (IndexError, ValueError, ZeroDivisionError):
        raise LoraError(f"The LoRA {name} holds factors for {path} that do not fit each other.") from None

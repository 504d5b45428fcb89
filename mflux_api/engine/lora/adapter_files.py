"""Reading LoRA and LoKr files: any naming that mflux knows becomes factors per layer of mflux's transformer.

The names, the splitting of fused layers and the meaning of alpha are mflux's (``Flux2LoRAMapping``, ``LoRALoader``,
``PeftLoRAMetadata``). Nothing here looks at a model, so nothing is checked against one yet.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
from mflux.models.common.lora.mapping.lokr_factors import is_lokr_adapter, rebuild_lokr_factors
from mflux.models.common.lora.mapping.lora_loader import LoRALoader, PatternMatch
from mflux.models.common.lora.mapping.lora_transforms import LoraTransforms
from mflux.models.common.lora.mapping.peft_lora_metadata import PeftLoRAMetadata
from mflux.models.flux2.weights.flux2_lora_mapping import Flux2LoRAMapping
from safetensors import SafetensorError, safe_open

_READABLE = ("F32", "F16", "BF16")
# Which third of a fused query-key-value layer a target takes.
_THIRDS = {LoraTransforms.split_q_up: 0, LoraTransforms.split_k_up: 1, LoraTransforms.split_v_up: 2}
# A module name, as PEFT writes it. It is matched as a regular expression, and an arbitrary one could take forever.
_PLAIN_PATTERN = re.compile(r"\^?[\w.\\]+\$?")


class LoraError(Exception):
    """The adapter cannot be used; the message is one sentence and names the file without its folder."""


@attrs.frozen(eq=False)
class LowRank:
    """The update ``transpose(down @ up)`` of a weight (Hu et al., arXiv:2106.09685); alpha is in ``up``."""

    down: mx.array
    """[inputs, rank]."""
    up: mx.array
    """[rank, outputs]."""


@attrs.frozen(eq=False)
class Kronecker:
    """The update ``alpha * kron(left, right)`` of a weight (LyCORIS' LoKr, arXiv:2309.14859)."""

    left: mx.array
    right: mx.array
    alpha: float
    magnitude: mx.array | None
    """DoRA's magnitude per output, where the file has one."""
    third: int | None
    """Which third of the product's rows belongs to the layer: 0, 1 or 2 of a fused layer, None for the whole."""


Factors = LowRank | Kronecker


def read_adapter(path: Path) -> dict[str, Factors]:
    """Read the factors in a safetensors file, by the path of the layer in mflux's ``Flux2Transformer``.

    Raises:
        LoraError: the file is missing, damaged, or holds nothing for FLUX.2 Klein.
    """
    tensors, metadata = _read(path)
    by_target: dict[str, dict[str, Any]] = defaultdict(dict)
    sources: dict[tuple[str, str], str] = {}
    for key, tensor in tensors.items():
        for match, block in _matches(key):
            target = match.target_path.format(block=block)
            if sources.setdefault((target, match.matrix_name), key) != key:
                raise LoraError(f"The LoRA {path.name} holds two updates for {target}: {key} and another one.")
            by_target[target].update(_convert(path, key, tensor, match))
    if not by_target:
        raise LoraError(
            f"The LoRA {path.name} holds no update for a FLUX.2 Klein model: it was made for another kind of model."
        )
    _fill_alpha(path, by_target, sources, metadata)
    return {target: _factors(path, target, data) for target, data in by_target.items()}


def _read(path: Path) -> tuple[dict[str, mx.array], Mapping[str, str]]:
    try:
        # safe_open checks the header and the file's length: MLX reads lazily and would make up a missing end.
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            types = {name: file.get_slice(name).get_dtype() for name in names}
        for name, kind in types.items():
            if kind not in _READABLE:
                raise LoraError(
                    f"The LoRA {path.name} holds {name} as {kind}: save it as one of {', '.join(_READABLE)}."
                )
        loaded = mx.load(str(path))
    except FileNotFoundError:
        raise LoraError(f"The LoRA {path.name} does not exist.") from None
    except (SafetensorError, OSError, RuntimeError, ValueError):
        raise LoraError(f"The LoRA {path.name} is not a whole safetensors file: download it again.") from None
    layers = {key.rsplit(".lora_magnitude_vector", 1)[0] for key in names if ".lora_magnitude_vector" in key}
    layers |= {key.removesuffix(".dora_scale") for key in names if key.endswith(".dora_scale")}
    if any(key.startswith(f"{layer}.lora_") and "magnitude" not in key for layer in layers for key in names):
        raise LoraError(f"The LoRA {path.name} is a DoRA, which is not supported: use a plain LoRA or a LoKr.")
    return loaded if isinstance(loaded, dict) else {}, metadata


@functools.cache
def _patterns() -> dict[str, list[PatternMatch]]:
    """Return mflux's naming patterns by their text; going through all of them for every tensor would take seconds."""
    index: dict[str, list[PatternMatch]] = defaultdict(list)
    for match in LoRALoader._build_pattern_mappings(Flux2LoRAMapping.get_mapping()):
        # ComfyUI leaves out the last part of the name.
        for pattern in {match.source_pattern, match.source_pattern.removesuffix(".weight")}:
            index[pattern].append(match)
    return dict(index)


def _matches(key: str) -> Iterator[tuple[PatternMatch, str]]:
    """Yield the places that a tensor's name stands for, each with its block's number."""
    for match in _patterns().get(key, ()):
        yield match, ""
    for number in re.finditer(r"\d+", key):
        for match in _patterns().get(f"{key[: number.start()]}{{block}}{key[number.end() :]}", ()):
            yield match, str(int(number.group()))


def _convert(path: Path, key: str, tensor: mx.array, match: PatternMatch) -> dict[str, Any]:
    third = _THIRDS.get(match.transform)
    if match.matrix_name.startswith("lokr"):
        # mflux cuts the right factor, but rows of a Kronecker product are not rows of its right factor: the whole
        # product is cut instead, where it is applied.
        return {match.matrix_name: tensor} | ({} if third is None else {"third": third})
    if match.matrix_name in ("lora_A", "lora_B") and tensor.ndim != 2:
        raise LoraError(f"The LoRA {path.name} holds {key} with shape {tuple(tensor.shape)}, which is not a matrix.")
    if third is not None and match.matrix_name == "lora_B" and tensor.shape[0] % 3:
        raise LoraError(f"The LoRA {path.name} holds {key} with {tensor.shape[0]} rows, which cannot be three layers.")
    value = tensor if match.transform is None else match.transform(tensor)
    return {match.matrix_name: value.T if match.transpose else value}


def _fill_alpha(
    path: Path, by_target: dict[str, dict[str, Any]], sources: dict[tuple[str, str], str], metadata: Mapping[str, str]
) -> None:
    try:
        configs = PeftLoRAMetadata.configs(dict(metadata))
        patterns = [pattern for config in configs.values() for pattern in config.get("alpha_pattern") or {}]
        if not all(_PLAIN_PATTERN.fullmatch(pattern) for pattern in patterns):
            raise LoraError(f"The LoRA {path.name} has an alpha pattern that is not a module's name.")
        LoRALoader._fill_alpha_from_metadata(by_target, sources, configs)
    except (TypeError, ValueError, AttributeError, KeyError, ZeroDivisionError, IndexError, re.error, RecursionError):
        raise LoraError(f"The LoRA {path.name} has metadata that cannot be read: save it again.") from None


def _factors(path: Path, target: str, data: dict[str, Any]) -> Factors:
    try:
        if is_lokr_adapter(data):
            left, right, alpha = rebuild_lokr_factors(data)
            return Kronecker(left, _as_matrix(right), alpha, data.get("dora_scale"), data.get("third"))
        down, up = data["lora_A"], data["lora_B"]
        if down.shape[1] != up.shape[0] or not down.size or not up.size:
            raise ValueError("the rank differs")
        if "alpha" in data:
            alpha = float(data["alpha"].item()) / down.shape[1]
            up = up.astype(mx.float32) * alpha
    except (KeyError, ValueError, ZeroDivisionError):
        raise LoraError(f"The LoRA {path.name} holds no complete update for {target}.") from None
    return LowRank(down, up)


def _as_matrix(right: mx.array) -> mx.array:
    # LyCORIS writes a 1 x 1 convolution's kernel as two more axes.
    return right.reshape(right.shape[:2]) if right.ndim == 4 and right.shape[2:] == (1, 1) else right

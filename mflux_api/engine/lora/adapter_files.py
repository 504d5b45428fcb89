"""Reading LoRA and LoKr files: any naming that mflux knows becomes factors per layer of mflux's transformer.

The names, the splitting of fused layers and the meaning of alpha are mflux's (``Flux2LoRAMapping``, ``LoRALoader``,
``PeftLoRAMetadata``). Nothing here looks at a model, so nothing is checked against one yet.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
from mflux.models.common.lora.mapping.lokr_factors import is_lokr_adapter, rebuild_lokr_factors
from mflux.models.common.lora.mapping.lora_loader import LoRALoader, PatternMatch
from mflux.models.common.lora.mapping.lora_transforms import LoraTransforms
from mflux.models.common.lora.mapping.peft_lora_metadata import PeftLoRAMetadata
from mflux.models.flux2.weights.flux2_lora_mapping import Flux2LoRAMapping

from mflux_api.engine.device import LIBRARY_ERRORS, is_out_of_memory
from mflux_api.engine.lora.open_lora import LoraError, OpenLora
from mflux_api.ipc.printable import printable

__all__ = ["Factors", "Kronecker", "LoraError", "LowRank", "blaming", "read_adapter"]

# Which third of a fused query-key-value layer a target takes.
_THIRDS = {LoraTransforms.split_q_up: 0, LoraTransforms.split_k_up: 1, LoraTransforms.split_v_up: 2}
# A module name, as PEFT writes it. It is matched as a regular expression, and an arbitrary one could take forever.
_PLAIN_PATTERN = re.compile(r"\^?[\w.\\]+\$?")
_MAX_PATTERNS = 512
"""Each is matched with each layer; ``re`` keeps so many compiled. FLUX.2-dev has 192 layers with a LoRA."""
# A block's number. With more digits it is not one, and int() takes no more than 4,300.
_NUMBER = re.compile(r"(?<![0-9])[0-9]{1,4}(?![0-9])")


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


def read_adapter(path: Path) -> dict[str, Factors]:
    """Read the factors in a safetensors file, by the path of the layer in mflux's ``Flux2Transformer``.

    Raises:
        LoraError: the file is missing, damaged, or holds nothing for FLUX.2 Klein.
    """
    with blaming(path.name), OpenLora(path) as file:
        _refuse_dora(file)
        factors = _read_factors(file)
        file.check_unchanged()
        return factors


def _read_factors(file: OpenLora) -> dict[str, Factors]:
    by_target: dict[str, dict[str, Any]] = defaultdict(dict)
    sources: dict[tuple[str, str], str] = {}
    for key in file.tensors:
        tensor: mx.array | None = None
        for match, block in _matches(key):
            target = match.target_path.format(block=block)
            if sources.setdefault((target, match.matrix_name), key) != key:
                raise LoraError(f"The LoRA {file.name} holds two updates for {target}: {key} and another one.")
            tensor = file.read(key) if tensor is None else tensor
            by_target[target].update(_convert(file.name, key, tensor, match))
    if not by_target:
        raise LoraError(
            f"The LoRA {file.name} holds no update for a FLUX.2 Klein model: it was made for another kind of model."
        )
    _fill_alpha(file, by_target, sources)
    return {target: _factors(file.name, target, data) for target, data in by_target.items()}


def _refuse_dora(file: OpenLora) -> None:
    names = file.tensors
    layers = {key.rsplit(".lora_magnitude_vector", 1)[0] for key in names if ".lora_magnitude_vector" in key}
    layers |= {key.removesuffix(".dora_scale") for key in names if key.endswith(".dora_scale")}
    if any(key.partition(".lora_")[0] in layers for key in names if ".lora_" in key and "magnitude" not in key):
        raise LoraError(f"The LoRA {file.name} is a DoRA, which is not supported: use a plain LoRA or a LoKr.")


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
    for number in _NUMBER.finditer(key):
        for match in _patterns().get(f"{key[: number.start()]}{{block}}{key[number.end() :]}", ()):
            yield match, str(int(number.group()))


def _convert(name: str, key: str, tensor: mx.array, match: PatternMatch) -> dict[str, Any]:
    third = _THIRDS.get(match.transform)
    if match.matrix_name.startswith("lokr"):
        # mflux cuts the right factor, but rows of a Kronecker product are not rows of its right factor: the whole
        # product is cut instead, where it is applied.
        return {match.matrix_name: tensor} | ({} if third is None else {"third": third})
    if match.matrix_name in ("lora_A", "lora_B") and tensor.ndim != 2:
        raise LoraError(f"The LoRA {name} holds {key} with shape {tuple(tensor.shape)}, which is not a matrix.")
    if third is not None and match.matrix_name == "lora_B" and tensor.shape[0] % 3:
        raise LoraError(f"The LoRA {name} holds {key} with {tensor.shape[0]} rows, which cannot be three layers.")
    value = tensor if match.transform is None else match.transform(tensor)
    return {match.matrix_name: value.T if match.transpose else value}


def _fill_alpha(file: OpenLora, by_target: dict[str, dict[str, Any]], sources: dict[tuple[str, str], str]) -> None:
    try:
        configs = PeftLoRAMetadata.configs(dict(file.metadata))
        patterns = [pattern for config in configs.values() for pattern in config.get("alpha_pattern") or {}]
        if len(patterns) > _MAX_PATTERNS or not all(_PLAIN_PATTERN.fullmatch(pattern) for pattern in patterns):
            raise LoraError(
                f"The LoRA {file.name} has an alpha pattern that is not a module's name, or more than {_MAX_PATTERNS}."
            )
        LoRALoader._fill_alpha_from_metadata(by_target, sources, configs)
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError, IndexError, re.error, RecursionError):
        raise LoraError(f"The LoRA {file.name} has metadata that cannot be read: save it again.") from None


def _factors(name: str, target: str, data: dict[str, Any]) -> Factors:
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
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        raise LoraError(f"The LoRA {name} holds no complete update for {target}.") from None
    return LowRank(down, up)


def _as_matrix(right: mx.array) -> mx.array:
    # LyCORIS writes a 1 x 1 convolution's kernel as two more axes.
    return right.reshape(right.shape[:2]) if right.ndim == 4 and right.shape[2:] == (1, 1) else right

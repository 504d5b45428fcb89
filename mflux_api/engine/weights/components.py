"""Loading any diffusers-layout FLUX.2 checkpoint, Klein or dev, with every dimension from its own files.

mflux itself reads no configuration and checks neither shapes nor completeness, so a wrong checkpoint would generate
from random weights without an error. Here every parameter's name and shape is compared before anything is used.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from mflux.models.flux2.weights.flux2_weight_mapping import Flux2WeightMapping
from mlx import nn

from mflux_api.catalog.files import (
    COMPONENTS,
    CONFIG_FILE,
    DEFAULT_SEQUENCE_LENGTH,
    DEV_OUT_LAYERS,
    KLEIN_OUT_LAYERS,
    MODEL_INDEX,
    OUT_LAYERS_KEY,
    SEQUENCE_LENGTH_KEY,
    ComponentName,
)
from mflux_api.engine.checkpoint import CheckpointError, JsonConfig, Weights, blaming, read_json, read_weights
from mflux_api.engine.dev.conversation import load_conversation_tokenizer
from mflux_api.engine.dev.text_encoder import MistralTextEncoder
from mflux_api.engine.stored_tensors import TensorReader, read_by_mlx
from mflux_api.engine.weights import dev_mapping as dev
from mflux_api.engine.weights import mflux_layout
from mflux_api.engine.weights.building import (
    LATENT_CHANNELS,
    MAX_LAYERS,
    build_text_encoder,
    build_transformer,
    build_vae,
)
from mflux_api.engine.weights.lazy_modules import LazyModules, OpenedModule, Reader
from mflux_api.engine.weights.parameters import count, expected_tensors, with_unused_layers
from mflux_api.engine.weights.reading import Report, no_report
from mflux_api.engine.weights.tokenizer import load_qwen_tokenizer

__all__ = ["CheckpointError", "CheckpointInfo", "Components", "load_components"]

# diffusers' class for the model with cached references; the components' files do not tell it from the others.
_KV_PIPELINE = "Flux2KleinKVPipeline"


@attrs.frozen
class CheckpointInfo:
    """What a checkpoint says about itself."""

    text_encoder_out_layers: tuple[int, ...]
    """Text-encoder layers whose outputs, side by side, condition the transformer (0 would be the embedding)."""
    max_sequence_length: int
    """Tokens every prompt is padded or cut to."""
    latent_channels: int
    is_distilled: bool | None
    """As ``model_index.json`` says; None where it does not."""
    caches_references: bool
    """Whether the model was made to see reference images at its first step only (FLUX.2 Klein 9B KV)."""
    embeds_guidance: bool
    """Whether guidance is an input of the transformer (FLUX.2-dev), so that one branch is enough."""
    transformer_width: int
    """Width of the hidden states."""
    transformer_parameters: int
    vae_parameters: int
    text_encoder_parameters: int
    """The layers that are loaded: those after the last used one are never read."""


class Components(LazyModules[ComponentName]):
    """The modules of one checkpoint and its tokenizer."""

    def __init__(
        self,
        tokenizer: Any,
        info: CheckpointInfo,
        readers: Mapping[ComponentName, Reader],
        sizes: Mapping[ComponentName, int],
        report: Report = no_report,
    ) -> None:
        super().__init__(readers, sizes, report)
        self.tokenizer = tokenizer
        self.info = info

    @property
    def text_encoder(self) -> nn.Module:
        """Mflux's Qwen3TextEncoder, or FLUX.2-dev's Mistral."""
        return self._module("text_encoder")

    @property
    def transformer(self) -> Any:
        """Mflux's Flux2Transformer."""
        return self._module("transformer")

    @property
    def vae(self) -> nn.Module:
        """Mflux's Flux2VAE."""
        return self._module("vae")


def load_components(
    path: Path,
    *,
    bits: int | None = None,
    component_offload: bool = False,
    report: Report = no_report,
    tensor_reader: TensorReader = read_by_mlx,
) -> Components:
    """Load the checkpoint folder ``path`` in ``ModelConfig.precision``: diffusers' layout or mflux's saved layout.

    ``device.configure`` must have set the precision. Nothing is downloaded.

    Args:
        path: the folder.
        bits: quantize to that many bits on the way (3, 4, 6 or 8).
        component_offload: check everything now and read each component's weights only when it is used.
        report: told how far the reading is, now and whenever a component is read again.
        tensor_reader: reads the tensors, each time.

    Raises:
        CheckpointError: a file is missing or corrupt, a dimension is unsupported, a parameter is missing, unexpected or
            of the wrong shape (the first such one is named, with both shapes), or ``bits`` is asked of weights that
            are quantized already.
    """
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {path.name}.")
    weights = {name: read_weights(path, name) for name in COMPONENTS}
    saved = weights["transformer"].saved_by_mflux
    index = read_json(path, MODEL_INDEX) if not saved else _json_or(path, MODEL_INDEX, lambda: {})
    mistral = dev.is_mistral(_text_encoder_config(path))
    out_layers = index.integers(OUT_LAYERS_KEY, DEV_OUT_LAYERS if mistral else KLEIN_OUT_LAYERS)
    sequence_length = index.integer(SEQUENCE_LENGTH_KEY, DEFAULT_SEQUENCE_LENGTH, high=1 << 16)
    opened = {name: _open(path, name, weights.pop(name), out_layers, bits) for name in COMPONENTS}
    load_tokenizer = load_conversation_tokenizer if mistral else load_qwen_tokenizer
    tokenizer = load_tokenizer(path, sequence_length, opened["text_encoder"].module.vocab_size)
    # All names and shapes before any byte: a mismatch in the last component must not cost the loading of the first.
    for component in opened.values():
        component.check()
    info = CheckpointInfo(
        text_encoder_out_layers=out_layers,
        max_sequence_length=sequence_length,
        latent_channels=LATENT_CHANNELS,
        is_distilled=index.boolean("is_distilled") if "is_distilled" in index.values else None,
        caches_references=index.values.get("_class_name") == _KV_PIPELINE,
        embeds_guidance=opened["transformer"].module.time_guidance_embed.guidance_embeds,
        transformer_width=opened["transformer"].module.inner_dim,
        transformer_parameters=opened["transformer"].parameters,
        vae_parameters=opened["vae"].parameters,
        text_encoder_parameters=opened["text_encoder"].parameters,
    )

    def reader(name: ComponentName) -> Reader:
        def read_component(read: Callable[[int], None]) -> nn.Module:
            # The first time it is opened and checked already.
            component = opened.pop(name, None)
            if component is None:
                component = _open(path, name, read_weights(path, name), out_layers, bits)
                component.check()
            return component.fill(read, tensor_reader)

        return read_component

    sizes = {name: component.file_bytes for name, component in opened.items()}
    components = Components(tokenizer, info, {name: reader(name) for name in COMPONENTS}, sizes, report)
    if component_offload:
        # Open files and half-built modules are not worth keeping until a job comes.
        opened.clear()
    else:
        components.load_all()
    return components


@attrs.define(eq=False, kw_only=True)
class _OpenedComponent(OpenedModule):
    """A component and how large it is."""

    parameters: int
    """Numbers in the full weights."""


def _open(
    path: Path, name: ComponentName, weights: Weights, out_layers: tuple[int, ...], bits: int | None
) -> _OpenedComponent:
    tensors = weights.tensors
    mapping: list[Any]
    with blaming(name, "dimensions in its configuration"):
        if name == "transformer":
            module = build_transformer(_config(path, name, weights), _text_config(path), out_layers)
            mapping = [*Flux2WeightMapping.get_transformer_mapping(), *dev.GUIDANCE_TARGETS]
        elif name == "vae":
            module = build_vae(_config(path, name, weights))
            mapping = Flux2WeightMapping.get_vae_mapping()
        else:
            mistral = dev.is_mistral(_text_encoder_config(path))
            module = build_text_encoder(_text_config(path), max(out_layers), mistral=mistral)
            mapping = dev.TEXT_ENCODER_TARGETS if mistral else Flux2WeightMapping.get_text_encoder_mapping()
    parameters = count(module)
    if weights.saved_by_mflux:
        if name == "text_encoder":
            tensors = mflux_layout.without_unused_layers(tensors, max(out_layers))
        mflux_layout.restructure(name, module, tensors)
        expected = mflux_layout.expected_saved(module)
        return _OpenedComponent(name, module, expected, tensors, bits, parameters=parameters)
    expected = expected_tensors(module, mapping)
    if name == "text_encoder":
        config = _text_config(path)
        layers = config.integer("num_hidden_layers", high=MAX_LAYERS)
        if isinstance(module, MistralTextEncoder):
            expected = dev.with_never_read(expected, max(out_layers), layers, config.integer("hidden_size"))
            tensors = dev.language_tensors(tensors)
        else:
            expected = with_unused_layers(expected, max(out_layers), layers)
            tensors = {_causal_name(key): array for key, array in tensors.items()}
    return _OpenedComponent(name, module, expected, tensors, bits, parameters=parameters)


def _config(path: Path, name: ComponentName, weights: Weights) -> JsonConfig:
    file = f"{name}/{CONFIG_FILE}"
    if not weights.saved_by_mflux:
        return read_json(path, file)
    # mflux saves no configuration.
    return _json_or(path, file, lambda: mflux_layout.DIMENSIONS[name](weights.tensors).values)


def _text_config(path: Path) -> JsonConfig:
    """Return the language model's dimensions; a text encoder that also sees images has them in a section."""
    config = _text_encoder_config(path)
    return config.section("text_config") or config


def _text_encoder_config(path: Path) -> JsonConfig:
    file = f"text_encoder/{CONFIG_FILE}"
    if (path / file).is_file():
        return read_json(path, file)
    return _config(path, "text_encoder", read_weights(path, "text_encoder"))


def _json_or(path: Path, name: str, otherwise: Callable[[], Mapping[str, Any]]) -> JsonConfig:
    return read_json(path, name) if (path / name).is_file() else JsonConfig(name, otherwise())


def _causal_name(name: str) -> str:
    # Qwen3Model saves what Qwen3ForCausalLM saves, without the prefix.
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"

"""Loading any diffusers-layout FLUX.2 checkpoint, Klein or dev, with every dimension from its own files.

mflux itself reads no configuration and checks neither shapes nor completeness, so a wrong checkpoint would generate
from random weights without an error. Here every parameter's name and shape is compared before anything is used.
"""

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import attrs
import mlx.core as mx
from mflux.models.common.tokenizer import LanguageTokenizer, TokenizerLoader
from mflux.models.common.weights.loading.weight_definition import TokenizerDefinition
from mflux.models.flux2.model.flux2_text_encoder.qwen3_text_encoder import Qwen3TextEncoder
from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
from mflux.models.flux2.model.flux2_vae.common.batch_norm_stats import Flux2BatchNormStats
from mflux.models.flux2.model.flux2_vae.decoder.decoder import Flux2Decoder
from mflux.models.flux2.model.flux2_vae.encoder.encoder import Flux2Encoder
from mflux.models.flux2.model.flux2_vae.vae import Flux2VAE
from mflux.models.flux2.weights.flux2_weight_mapping import Flux2WeightMapping

from mflux_api.engine import saved_layout
from mflux_api.engine.checkpoint import CheckpointError, JsonConfig, Weights, read_json, read_weights
from mflux_api.engine.dev import layout as dev
from mflux_api.engine.dev.conversation import load_conversation_tokenizer
from mflux_api.engine.dev.text_encoder import MistralTextEncoder
from mflux_api.engine.parameters import (
    ExpectedTensor,
    check,
    count,
    expected_tensors,
    fill,
    quantize_layers,
    with_unused_layers,
)

__all__ = ["COMPONENTS", "CheckpointError", "CheckpointInfo", "ComponentName", "Components", "load_components"]

ComponentName: TypeAlias = Literal["text_encoder", "transformer", "vae"]
COMPONENTS: tuple[ComponentName, ...] = ("text_encoder", "transformer", "vae")
"""In the order in which a picture needs them."""

_DEFAULT_OUT_LAYERS = (9, 18, 27)
_DEFAULT_SEQUENCE_LENGTH = 512
_LATENT_CHANNELS = 32
_IN_CHANNELS = 128  # 32 latent channels in patches of 2 x 2
_MAX_LAYERS = 512
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
    """Whether the model was made to see reference pictures at its first step only (FLUX.2 Klein 9B KV)."""
    embeds_guidance: bool
    """Whether guidance is an input of the transformer (FLUX.2-dev), so that one branch is enough."""
    transformer_width: int
    """Of its hidden states."""
    transformer_parameters: int
    vae_parameters: int
    text_encoder_parameters: int
    """Only the layers that are loaded: those after the last used one are never read."""


class Components:
    """mflux's modules of one checkpoint and its tokenizer.

    A module's weights are read from disk when it is first used, unless they were read before; ``drop`` frees them, and
    the next use reads the same bits again. Raises CheckpointError where the files have changed in between.
    """

    def __init__(
        self, tokenizer: Any, info: CheckpointInfo, readers: Mapping[ComponentName, Callable[[], Any]]
    ) -> None:
        self.tokenizer = tokenizer
        self.info = info
        self._readers = readers
        self._modules: dict[ComponentName, Any] = {}

    @property
    def text_encoder(self) -> Any:
        """mflux's Qwen3TextEncoder, or FLUX.2-dev's Mistral."""
        return self._module("text_encoder")

    @property
    def transformer(self) -> Any:
        """mflux's Flux2Transformer."""
        return self._module("transformer")

    @property
    def vae(self) -> Any:
        """mflux's Flux2VAE."""
        return self._module("vae")

    @property
    def resident(self) -> frozenset[ComponentName]:
        """The modules whose weights are in memory."""
        return frozenset(self._modules)

    def load_all(self) -> None:
        """Read what is not in memory yet."""
        for name in COMPONENTS:
            self._module(name)

    def drop(self, name: ComponentName) -> None:
        """Free a module's weights; whoever still holds the module keeps them alive."""
        if self._modules.pop(name, None) is not None:
            gc.collect()
            mx.clear_cache()

    def _module(self, name: ComponentName) -> Any:
        if name not in self._modules:
            self._modules[name] = self._readers[name]()
        return self._modules[name]


def load_components(path: Path, *, bits: int | None = None, staged: bool = False) -> Components:
    """Load the checkpoint folder ``path`` in ``ModelConfig.precision``: diffusers' layout or mflux's saved layout.

    ``memory.configure`` must have set the precision. Nothing is downloaded.

    Args:
        path: the folder.
        bits: quantize to that many bits on the way (3, 4, 6 or 8).
        staged: check everything now and read each component's weights only when it is used.

    Raises:
        CheckpointError: a file is missing or corrupt, a dimension is unsupported, a parameter is missing, unexpected or
            of the wrong shape (the first such one is named, with both shapes), or ``bits`` are asked of weights that
            are quantized already.
    """
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {path.name}.")
    weights = {name: read_weights(path, name) for name in COMPONENTS}
    saved = weights["transformer"].saved_by_mflux
    index = read_json(path, "model_index.json") if not saved else _json_or(path, "model_index.json", lambda: {})
    mistral = dev.is_mistral(_text_encoder_config(path))
    out_layers = index.integers("text_encoder_out_layers", dev.OUT_LAYERS if mistral else _DEFAULT_OUT_LAYERS)
    sequence_length = index.integer("max_sequence_length", _DEFAULT_SEQUENCE_LENGTH, high=1 << 16)
    opened = {name: _open(path, name, weights.pop(name), out_layers, bits) for name in COMPONENTS}
    load_tokenizer = load_conversation_tokenizer if mistral else _load_tokenizer
    tokenizer = load_tokenizer(path, sequence_length, opened["text_encoder"].module.vocab_size)
    # All names and shapes before any byte: a mismatch in the last component must not cost the loading of the first.
    for component in opened.values():
        component.check()
    info = CheckpointInfo(
        text_encoder_out_layers=out_layers,
        max_sequence_length=sequence_length,
        latent_channels=_LATENT_CHANNELS,
        is_distilled=index.boolean("is_distilled") if "is_distilled" in index.values else None,
        caches_references=index.values.get("_class_name") == _KV_PIPELINE,
        embeds_guidance=opened["transformer"].module.time_guidance_embed.guidance_embeds,
        transformer_width=opened["transformer"].module.inner_dim,
        transformer_parameters=opened["transformer"].parameters,
        vae_parameters=opened["vae"].parameters,
        text_encoder_parameters=opened["text_encoder"].parameters,
    )

    def reader(name: ComponentName) -> Callable[[], Any]:
        def read() -> Any:
            # The first time it is open and checked already.
            component = opened.pop(name, None)
            if component is None:
                component = _open(path, name, read_weights(path, name), out_layers, bits)
                component.check()
            return component.fill()

        return read

    components = Components(tokenizer, info, {name: reader(name) for name in COMPONENTS})
    if staged:
        # Open files and half-built modules are not for keeping until some job comes.
        opened.clear()
    else:
        components.load_all()
    return components


@attrs.define(eq=False)
class _Opened:
    """A component whose files were looked at and not read."""

    name: ComponentName
    module: Any
    expected: Mapping[str, ExpectedTensor]
    found: dict[str, mx.array]
    parameters: int
    bits: int | None

    def check(self) -> None:
        check(self.name, self.expected, self.found)
        if self.bits is not None and any(tensor.packed for tensor in self.expected.values()):
            raise CheckpointError(f"{self.name} is quantized already: use the checkpoint as it is, under its own name.")

    def fill(self) -> Any:
        quantize = None if self.bits is None else quantize_layers(self.module, self.bits)
        fill(self.name, self.module, self.expected, self.found, quantize=quantize)
        return self.module


def _open(path: Path, name: ComponentName, weights: Weights, out_layers: tuple[int, ...], bits: int | None) -> _Opened:
    tensors = weights.tensors
    mapping: list[Any]
    if name == "transformer":
        module = _build_transformer(_config(path, name, weights), _text_config(path), out_layers)
        mapping = [*Flux2WeightMapping.get_transformer_mapping(), *dev.GUIDANCE_TARGETS]
    elif name == "vae":
        module = _build_vae(_config(path, name, weights))
        mapping = Flux2WeightMapping.get_vae_mapping()
    else:
        module = _build_text_encoder(path, max(out_layers))
        mistral = isinstance(module, MistralTextEncoder)
        mapping = dev.TEXT_ENCODER_TARGETS if mistral else Flux2WeightMapping.get_text_encoder_mapping()
    parameters = count(module)
    if weights.saved_by_mflux:
        if name == "text_encoder":
            tensors = saved_layout.without_unused_layers(tensors, max(out_layers))
        saved_layout.restructure(name, module, tensors)
        return _Opened(name, module, saved_layout.expected_saved(module), tensors, parameters, bits)
    expected = expected_tensors(module, mapping)
    if name == "text_encoder":
        config = _text_config(path)
        layers = config.integer("num_hidden_layers", high=_MAX_LAYERS)
        if isinstance(module, MistralTextEncoder):
            expected = dev.with_unread(expected, max(out_layers), layers, config.integer("hidden_size"))
            tensors = dev.language_tensors(tensors)
        else:
            expected = with_unused_layers(expected, max(out_layers), layers)
            tensors = {_causal_name(key): array for key, array in tensors.items()}
    return _Opened(name, module, expected, tensors, parameters, bits)


def _config(path: Path, name: ComponentName, weights: Weights) -> JsonConfig:
    file = f"{name}/config.json"
    if not weights.saved_by_mflux:
        return read_json(path, file)
    # mflux saves no configuration.
    return _json_or(path, file, lambda: saved_layout.DIMENSIONS[name](weights.tensors).values)


def _text_config(path: Path) -> JsonConfig:
    """The language model's dimensions; a text encoder that also sees pictures has them in a part of their own."""
    config = _text_encoder_config(path)
    return config.section("text_config") or config


def _text_encoder_config(path: Path) -> JsonConfig:
    file = "text_encoder/config.json"
    if (path / file).is_file():
        return read_json(path, file)
    return _config(path, "text_encoder", read_weights(path, "text_encoder"))


def _json_or(path: Path, name: str, otherwise: Callable[[], Mapping[str, Any]]) -> JsonConfig:
    return read_json(path, name) if (path / name).is_file() else JsonConfig(name, otherwise())


def _build_transformer(config: JsonConfig, text_config: JsonConfig, out_layers: tuple[int, ...]) -> Any:
    config.demand("in_channels", _IN_CHANNELS, _IN_CHANNELS)
    config.demand("patch_size", 1, 1)
    config.demand("eps", 1e-6, 1e-6)
    if config.values.get("out_channels") not in (None, _IN_CHANNELS):
        raise CheckpointError(f"{config.name}: out_channels must be {_IN_CHANNELS}, as many as in_channels.")
    head_dim = config.integer("attention_head_dim")
    axes = config.integers("axes_dims_rope", (32, 32, 32, 32))
    if len(axes) != 4 or sum(axes) != head_dim or any(axis % 2 for axis in axes):
        raise CheckpointError(f"{config.name}: axes_dims_rope must be 4 even numbers of sum {head_dim}, and is {axes}.")
    joint_dim = config.integer("joint_attention_dim")
    text_dim = len(out_layers) * text_config.integer("hidden_size")
    if joint_dim != text_dim:
        raise CheckpointError(
            f"{config.name}: joint_attention_dim is {joint_dim}, but {len(out_layers)} outputs of the text encoder "
            f"are {text_dim} wide."
        )
    return Flux2Transformer(
        patch_size=1,
        in_channels=_IN_CHANNELS,
        num_layers=config.integer("num_layers", low=0, high=_MAX_LAYERS),
        num_single_layers=config.integer("num_single_layers", low=0, high=_MAX_LAYERS),
        attention_head_dim=head_dim,
        num_attention_heads=config.integer("num_attention_heads"),
        joint_attention_dim=joint_dim,
        timestep_guidance_channels=config.integer("timestep_guidance_channels", 256),
        mlp_ratio=config.number("mlp_ratio", 3.0),
        axes_dims_rope=axes,
        rope_theta=config.integer("rope_theta", 2000),
        guidance_embeds=config.boolean("guidance_embeds", True),
    )


def _build_vae(config: JsonConfig) -> Any:
    config.demand("latent_channels", _LATENT_CHANNELS, _LATENT_CHANNELS)
    config.demand("patch_size", [2, 2], [2, 2])
    for key, value in (("in_channels", 3), ("out_channels", 3), ("act_fn", "silu")):
        config.demand(key, value, value)
    for key in ("use_quant_conv", "use_post_quant_conv"):
        config.demand(key, True, True)
    widths = config.integers("block_out_channels", (128, 256, 512, 512))
    decoder_widths = config.integers("decoder_block_out_channels", widths)
    groups = config.integer("norm_num_groups", 32)
    for shape in (widths, decoder_widths):
        # Four blocks make the VAE's scale of 8, which the latent noise is laid out for.
        if len(shape) != 4 or any(width % groups for width in shape):
            raise CheckpointError(f"{config.name}: the VAE needs 4 block widths, each a multiple of {groups} groups.")
    layers = config.integer("layers_per_block", 2, high=_MAX_LAYERS)
    attention = config.boolean("mid_block_add_attention", True)
    vae = Flux2VAE()
    vae.encoder = Flux2Encoder(
        block_out_channels=widths, layers_per_block=layers, norm_num_groups=groups, mid_block_add_attention=attention
    )
    vae.decoder = Flux2Decoder(
        block_out_channels=decoder_widths,
        layers_per_block=layers,
        norm_num_groups=groups,
        mid_block_add_attention=attention,
    )
    vae.bn = Flux2BatchNormStats(num_features=_IN_CHANNELS, eps=config.number("batch_norm_eps", 1e-4))
    return vae


def _build_text_encoder(path: Path, used_layers: int) -> Any:
    config = _text_config(path)
    layers = config.integer("num_hidden_layers", high=_MAX_LAYERS)
    if used_layers >= layers:
        raise CheckpointError(
            f"model_index.json uses the output of text-encoder layer {used_layers} of {layers}: the last layer's "
            "output is normed in transformers and not here, so an output layer must come before the last one."
        )
    if dev.is_mistral(_text_encoder_config(path)):
        return dev.build_text_encoder(config, used_layers, _rope_theta(config))
    for key, value in (("hidden_act", "silu"), ("attention_bias", False), ("use_sliding_window", False)):
        config.demand(key, value, value)
    heads = config.integer("num_attention_heads")
    key_value_heads = config.integer("num_key_value_heads", heads)
    if heads % key_value_heads:
        raise CheckpointError(f"{config.name}: num_attention_heads must be a multiple of num_key_value_heads.")
    return Qwen3TextEncoder(
        vocab_size=config.integer("vocab_size", high=1 << 24),
        hidden_size=config.integer("hidden_size"),
        num_hidden_layers=used_layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=config.integer("intermediate_size"),
        rope_theta=_rope_theta(config),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        head_dim=config.integer("head_dim", 128),
    )


def _rope_theta(config: JsonConfig) -> float:
    # transformers 5 moved rope_theta from the top level into an object.
    for key in ("rope_parameters", "rope_scaling"):
        section = config.section(key)
        if section is not None:
            section.demand("rope_type", "default", "default")
            if "rope_theta" in section.values:
                return section.number("rope_theta")
    return config.number("rope_theta", 1_000_000.0)


def _causal_name(name: str) -> str:
    # Qwen3Model saves what Qwen3ForCausalLM saves, without the prefix.
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def _load_tokenizer(path: Path, sequence_length: int, vocab_size: int) -> Any:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (path / "tokenizer" / name).is_file():
            raise CheckpointError(f"tokenizer/{name} is missing.")
    definition = TokenizerDefinition(
        name="qwen3",
        hf_subdir="tokenizer",
        tokenizer_class="Qwen2TokenizerFast",
        encoder_class=LanguageTokenizer,
        max_length=sequence_length,
        use_chat_template=True,
        chat_template_kwargs={"enable_thinking": False},
    )
    try:
        # An absolute path that is a folder never reaches mflux's branch for repositories, so nothing is downloaded.
        tokenizer: Any = TokenizerLoader.load(definition, str(path.resolve()))
    except (OSError, RuntimeError, ValueError):
        raise CheckpointError("tokenizer/ holds files that transformers cannot load.") from None
    raw = tokenizer.tokenizer
    if not raw.chat_template:
        raise CheckpointError("tokenizer/chat_template.jinja is missing, and tokenizer_config.json has no template.")
    if raw.pad_token_id is None:
        raise CheckpointError("tokenizer/tokenizer_config.json names no padding token.")
    # A token beyond the embedding would read memory that is not the embedding's.
    if len(raw) > vocab_size:
        raise CheckpointError(f"tokenizer/ has {len(raw)} tokens, and the text encoder embeds only {vocab_size}.")
    return tokenizer

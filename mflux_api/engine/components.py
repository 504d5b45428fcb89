"""Loading any diffusers-layout FLUX.2 Klein checkpoint into mflux's modules, with every dimension from its own files.

mflux itself reads no configuration and checks neither shapes nor completeness, so a wrong checkpoint would generate
from random weights without an error. Here every parameter's name and shape is compared before anything is used.
"""

from pathlib import Path
from typing import Any

import attrs
from mflux.models.common.tokenizer import LanguageTokenizer, TokenizerLoader
from mflux.models.common.weights.loading.weight_definition import TokenizerDefinition
from mflux.models.flux2.model.flux2_text_encoder.qwen3_text_encoder import Qwen3TextEncoder
from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
from mflux.models.flux2.model.flux2_vae.common.batch_norm_stats import Flux2BatchNormStats
from mflux.models.flux2.model.flux2_vae.decoder.decoder import Flux2Decoder
from mflux.models.flux2.model.flux2_vae.encoder.encoder import Flux2Encoder
from mflux.models.flux2.model.flux2_vae.vae import Flux2VAE
from mflux.models.flux2.weights.flux2_weight_mapping import Flux2WeightMapping

from mflux_api.engine.checkpoint import CheckpointError, JsonConfig, read_json, read_weights
from mflux_api.engine.parameters import check, expected_tensors, fill, with_unused_layers

__all__ = ["CheckpointError", "CheckpointInfo", "Components", "load_components"]

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
    transformer_parameters: int
    vae_parameters: int
    text_encoder_parameters: int
    """Only the layers that are loaded: those after the last used one are never read."""


@attrs.frozen(eq=False)
class Components:
    """mflux's modules of one checkpoint, weights in memory, and its tokenizer."""

    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    info: CheckpointInfo


def load_components(path: Path) -> Components:
    """Load the checkpoint folder ``path`` in ``ModelConfig.precision``.

    ``memory.configure`` must have set the precision. Nothing is downloaded.

    Raises:
        CheckpointError: a file is missing or corrupt, a dimension is unsupported, or a parameter is missing,
            unexpected or of the wrong shape (the first such one is named, with both shapes).
    """
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {path.name}.")
    # Weights first: a quantized checkpoint of mflux has no configuration files, and should be told what it is.
    weights = {name: read_weights(path, name) for name in ("transformer", "vae", "text_encoder")}
    index = read_json(path, "model_index.json")
    out_layers = index.integers("text_encoder_out_layers", _DEFAULT_OUT_LAYERS)
    sequence_length = index.integer("max_sequence_length", _DEFAULT_SEQUENCE_LENGTH, high=1 << 16)
    text_config = read_json(path, "text_encoder/config.json")
    transformer = _build_transformer(read_json(path, "transformer/config.json"), text_config, out_layers)
    vae = _build_vae(read_json(path, "vae/config.json"))
    text_encoder = _build_text_encoder(text_config, max(out_layers))
    layers = text_config.integer("num_hidden_layers", high=_MAX_LAYERS)
    tokenizer = _load_tokenizer(path, sequence_length, text_encoder.vocab_size)

    expected = {
        "transformer": expected_tensors(transformer, Flux2WeightMapping.get_transformer_mapping()),
        "vae": expected_tensors(vae, Flux2WeightMapping.get_vae_mapping()),
        "text_encoder": with_unused_layers(
            expected_tensors(text_encoder, Flux2WeightMapping.get_text_encoder_mapping()), max(out_layers), layers
        ),
    }
    weights["text_encoder"] = {_causal_name(name): array for name, array in weights["text_encoder"].items()}
    # All names and shapes before any byte: a mismatch in the last component must not cost the loading of the first.
    for component, tensors in expected.items():
        check(component, tensors, weights[component])
    counts = {
        component: fill(component, module, expected[component], weights.pop(component))
        for component, module in (("text_encoder", text_encoder), ("transformer", transformer), ("vae", vae))
    }
    return Components(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        info=CheckpointInfo(
            text_encoder_out_layers=out_layers,
            max_sequence_length=sequence_length,
            latent_channels=_LATENT_CHANNELS,
            is_distilled=index.boolean("is_distilled") if "is_distilled" in index.values else None,
            caches_references=index.values.get("_class_name") == _KV_PIPELINE,
            transformer_parameters=counts["transformer"],
            vae_parameters=counts["vae"],
            text_encoder_parameters=counts["text_encoder"],
        ),
    )


def _build_transformer(config: JsonConfig, text_config: JsonConfig, out_layers: tuple[int, ...]) -> Any:
    config.demand("in_channels", _IN_CHANNELS, _IN_CHANNELS)
    config.demand("patch_size", 1, 1)
    config.demand("guidance_embeds", False, True)
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
        guidance_embeds=False,
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


def _build_text_encoder(config: JsonConfig, used_layers: int) -> Any:
    layers = config.integer("num_hidden_layers", high=_MAX_LAYERS)
    if used_layers >= layers:
        raise CheckpointError(
            f"model_index.json uses the output of text-encoder layer {used_layers} of {layers}: the last layer's "
            "output is normed in transformers and not here, so an output layer must come before the last one."
        )
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

"""FLUX.2's modules, without weights, with every dimension from a checkpoint's configuration.

Each function raises CheckpointError for a configuration that mflux's modules cannot compute.
"""

from mflux.models.flux2.model.flux2_text_encoder.qwen3_text_encoder import Qwen3TextEncoder
from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
from mflux.models.flux2.model.flux2_vae.common.batch_norm_stats import Flux2BatchNormStats
from mflux.models.flux2.model.flux2_vae.decoder.decoder import Flux2Decoder
from mflux.models.flux2.model.flux2_vae.encoder.encoder import Flux2Encoder
from mflux.models.flux2.model.flux2_vae.vae import Flux2VAE
from mlx import nn

from mflux_api.catalog.files import MODEL_INDEX
from mflux_api.engine.checkpoint import CheckpointError, JsonConfig
from mflux_api.engine.weights import dev_mapping as dev

LATENT_CHANNELS = 32
MAX_LAYERS = 512
_IN_CHANNELS = 128  # 32 latent channels in patches of 2 x 2


def build_transformer(config: JsonConfig, text_config: JsonConfig, out_layers: tuple[int, ...]) -> nn.Module:
    """Build mflux's Flux2Transformer for the text encoder's outputs ``out_layers``, side by side."""
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
    transformer: nn.Module = Flux2Transformer(
        patch_size=1,
        in_channels=_IN_CHANNELS,
        num_layers=config.integer("num_layers", low=0, high=MAX_LAYERS),
        num_single_layers=config.integer("num_single_layers", low=0, high=MAX_LAYERS),
        attention_head_dim=head_dim,
        num_attention_heads=config.integer("num_attention_heads"),
        joint_attention_dim=joint_dim,
        timestep_guidance_channels=config.integer("timestep_guidance_channels", 256),
        mlp_ratio=config.number("mlp_ratio", 3.0),
        axes_dims_rope=axes,
        rope_theta=config.integer("rope_theta", 2000),
        guidance_embeds=config.boolean("guidance_embeds", True),
    )
    return transformer


def build_vae(config: JsonConfig) -> nn.Module:
    """Build mflux's Flux2VAE."""
    config.demand("latent_channels", LATENT_CHANNELS, LATENT_CHANNELS)
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
    layers = config.integer("layers_per_block", 2, high=MAX_LAYERS)
    attention = config.boolean("mid_block_add_attention", True)
    vae: nn.Module = Flux2VAE()
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


def build_text_encoder(config: JsonConfig, used_layers: int, *, mistral: bool) -> nn.Module:
    """Build Qwen3 or FLUX.2-dev's Mistral, with its first ``used_layers`` layers, from the language model's config."""
    layers = config.integer("num_hidden_layers", high=MAX_LAYERS)
    if used_layers >= layers:
        raise CheckpointError(
            f"{MODEL_INDEX} uses the output of text-encoder layer {used_layers} of {layers}: the last layer's "
            "output is normed in transformers and not here, so an output layer must come before the last one."
        )
    if mistral:
        return dev.build_text_encoder(config, used_layers, _rope_theta(config))
    for key, value in (("hidden_act", "silu"), ("attention_bias", False), ("use_sliding_window", False)):
        config.demand(key, value, value)
    heads = config.integer("num_attention_heads")
    key_value_heads = config.integer("num_key_value_heads", heads)
    if heads % key_value_heads:
        raise CheckpointError(f"{config.name}: num_attention_heads must be a multiple of num_key_value_heads.")
    text_encoder: nn.Module = Qwen3TextEncoder(
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
    return text_encoder


def _rope_theta(config: JsonConfig) -> float:
    # transformers 5 moved rope_theta from the top level into an object.
    for key in ("rope_parameters", "rope_scaling"):
        section = config.section(key)
        if section is not None:
            section.demand("rope_type", "default", "default")
            if "rope_theta" in section.values:
                return section.number("rope_theta")
    return config.number("rope_theta", 1_000_000.0)

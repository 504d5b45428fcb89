"""How a FLUX.2-dev checkpoint in diffusers' layout becomes the modules' parameters."""

from collections.abc import Mapping
from typing import TypeVar

from mflux.models.common.weights.mapping.weight_mapping import WeightTarget

from mflux_api.catalog.files import DEV_LANGUAGE_MODEL, DEV_MODEL_TYPE, DEV_NOT_NEEDED
from mflux_api.engine.checkpoint import CheckpointError, JsonConfig
from mflux_api.engine.dev.text_encoder import MistralShape, MistralTextEncoder
from mflux_api.engine.weights.parameters import ExpectedTensor, with_unused_layers

T = TypeVar("T")

# The two linear layers that embed guidance; mflux names them and has no mapping for them.
GUIDANCE_TARGETS = [
    WeightTarget(
        to_pattern=f"time_guidance_embed.guidance_linear_{number}.weight",
        from_pattern=[f"time_guidance_embed.guidance_embedder.linear_{number}.weight"],
    )
    for number in (1, 2)
]

_LAYER_WEIGHTS = (
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
TEXT_ENCODER_TARGETS = [
    WeightTarget(to_pattern="embed_tokens.weight", from_pattern=["model.embed_tokens.weight"]),
    *(
        WeightTarget(
            to_pattern=f"layers.{{layer}}.{name}.weight", from_pattern=[f"model.layers.{{layer}}.{name}.weight"]
        )
        for name in _LAYER_WEIGHTS
    ),
]


def is_mistral(config: JsonConfig) -> bool:
    """Whether a text encoder's ``config.json`` is FLUX.2-dev's."""
    return config.values.get("model_type") == DEV_MODEL_TYPE


def language_tensors(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the tensors of the language half, named ``model.…`` for each version of transformers."""
    return {
        DEV_LANGUAGE_MODEL.sub("model.", name, count=1): tensor
        for name, tensor in tensors.items()
        if not DEV_NOT_NEEDED.match(name)
    }


def with_never_read(
    expected: Mapping[str, ExpectedTensor], used: int, layers: int, width: int
) -> dict[str, ExpectedTensor]:
    """Add what the files must hold and is never read: the layers from ``used`` on, and the final norm."""
    norm = ExpectedTensor(parameter=None, shape=(width,), transform=None)
    return {**with_unused_layers(expected, used, layers), "model.norm.weight": norm}


def build_text_encoder(config: JsonConfig, used_layers: int, rope_theta: float) -> MistralTextEncoder:
    """Build a text encoder without weights, with its first ``used_layers`` layers.

    Args:
        config: the language half's part of ``config.json``.
        used_layers: up to the last output layer.
        rope_theta: the base of the rotary position embedding.

    Raises:
        CheckpointError: the configuration asks for what is not computed here.
    """
    config.demand("hidden_act", "silu", "silu")
    config.demand("sliding_window", None, None)
    heads = config.integer("num_attention_heads")
    key_value_heads = config.integer("num_key_value_heads", heads)
    if heads % key_value_heads:
        raise CheckpointError(f"{config.name}: num_attention_heads must be a multiple of num_key_value_heads.")
    width = config.integer("hidden_size")
    head_dim = config.integer("head_dim", width // heads)
    if head_dim % 2:
        raise CheckpointError(f"{config.name}: head_dim must be even, and is {head_dim}.")
    return MistralTextEncoder(
        MistralShape(
            vocab_size=config.integer("vocab_size", high=1 << 24),
            width=width,
            layers=used_layers,
            heads=heads,
            key_value_heads=key_value_heads,
            head_dim=head_dim,
            mlp_width=config.integer("intermediate_size"),
            rope_theta=rope_theta,
            norm_eps=config.number("rms_norm_eps", 1e-5),
        )
    )

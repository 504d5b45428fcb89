"""mflux's own ``Flux2Klein``, as its documents have it, on any checkpoint. Importing it imports MLX."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mflux.models.common.config.model_config import ModelConfig
from mflux.models.common.vae.block_decoder import VAEBlockDecoder
from mflux.models.flux2.flux2_initializer import Flux2Initializer
from mflux.models.flux2.model.flux2_text_encoder.prompt_encoder import Flux2PromptEncoder
from mflux.models.flux2.variants import Flux2Klein
from mlx import nn

from mflux_api.engine.weights.components import load_components

KLEIN_VAE_WIDTHS = [128, 256, 512, 512]


def load(folder: Path) -> Any:
    """Load a checkpoint as a ``Flux2Klein``, whose ``generate_image`` is mflux's."""
    config = model_config(_values(folder, "transformer"), _values(folder, "text_encoder"))
    if _values(folder, "vae")["block_out_channels"] == KLEIN_VAE_WIDTHS:
        return Flux2Klein(model_path=str(folder), model_config=config)
    return _with_other_dimensions(folder, config)


def _with_other_dimensions(folder: Path, config: ModelConfig) -> Any:
    """Give a ``Flux2Klein`` modules whose dimensions its constructor has no parameters for, such as the demo's."""
    model: Any = Flux2Klein.__new__(Flux2Klein)
    nn.Module.__init__(model)
    Flux2Initializer._init_config(model, config)
    components = load_components(folder)
    model.vae, model.transformer, model.text_encoder = components.vae, components.transformer, components.text_encoder
    model.vae.decode_mode = VAEBlockDecoder.LOW_MEMORY
    model.tokenizers = {"qwen3": components.tokenizer}
    model.bits, model.lora_paths, model.lora_scales = None, [], []
    model.small_text_encoder = model.small_decoder = False

    def encode(*, prompt: str, negative_prompt: str | None, guidance: float) -> tuple[Any, Any, None, None]:
        embeddings, ids = Flux2PromptEncoder.encode_prompt(
            prompt=prompt,
            tokenizer=components.tokenizer,
            text_encoder=model.text_encoder,
            max_sequence_length=components.info.max_sequence_length,
            text_encoder_out_layers=components.info.text_encoder_out_layers,
        )
        return embeddings, ids, None, None

    model._encode_prompt_pair = encode
    model._generation_parameters = dict
    return model


def model_config(transformer: Mapping[str, Any], text: Mapping[str, Any], *, kv_cache: bool = False) -> ModelConfig:
    """Return mflux's configuration of a Klein with the dimensions of a checkpoint.

    Args:
        transformer: the transformer's ``config.json``.
        text: the text encoder's.
        kv_cache: whether the model keeps its references' keys and values.
    """
    text_keys = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "head_dim",
    )
    transformer_keys = (
        "num_layers",
        "num_single_layers",
        "num_attention_heads",
        "attention_head_dim",
        "joint_attention_dim",
    )
    return ModelConfig(
        priority=0,
        aliases=["benchmark"],
        model_name="benchmark",
        base_model=None,
        controlnet_model=None,
        custom_transformer_model=None,
        num_train_steps=1000,
        max_sequence_length=512,
        supports_guidance=True,
        requires_sigma_shift=True,
        supports_kv_cache=kv_cache,
        transformer_overrides={key: transformer[key] for key in transformer_keys}
        | {"axes_dims_rope": tuple(transformer["axes_dims_rope"])},
        text_encoder_overrides={key: text[key] for key in text_keys},
    )


def _values(folder: Path, component: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / component / "config.json").read_text("utf-8"))
    return found

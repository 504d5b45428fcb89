"""The files of a FLUX.2 Klein checkpoint in diffusers' layout: which tensors and which configuration a shape has."""

import math
from collections.abc import Iterator
from typing import Any

import attrs

from mflux_api.catalog.files import OUT_LAYERS_KEY, SEQUENCE_LENGTH_KEY
from mflux_api.engine.demo.byte_tokenizer import END_TOKEN_ID, PAD_TOKEN_ID, VOCABULARY_SIZE

Tensors = Iterator[tuple[str, tuple[int, ...], float]]
"""Tensors as (name, shape, standard deviation); ``ZEROS`` and ``ONES`` mark constants."""

ZEROS = 0.0
ONES = math.inf
# The gain of the last convolution: its input has rms 0.6, and an image should fill [-1, 1] and not saturate.
_IMAGE_GAIN = 0.8


@attrs.frozen
class CheckpointShape:
    """The dimensions of a random checkpoint; the defaults are a model of 16 million parameters."""

    vae_widths: tuple[int, int, int, int] = (32, 64, 96, 128)
    vae_layers_per_block: int = 1
    vae_norm_groups: int = 16
    double_blocks: int = 3
    single_blocks: int = 6
    heads: int = 4
    head_dim: int = 64
    axes_dims_rope: tuple[int, int, int, int] = (16, 16, 16, 16)
    mlp_ratio: float = 3.0
    text_width: int = 128
    text_layers: int = 4
    text_out_layers: tuple[int, ...] = (1, 2, 3)
    text_heads: int = 2
    text_key_value_heads: int = 1
    text_head_dim: int = 64
    text_mlp_width: int = 256
    max_sequence_length: int = 64
    is_distilled: bool = True

    @property
    def width(self) -> int:
        """The transformer's hidden width."""
        return self.heads * self.head_dim

    @property
    def joint_attention_dim(self) -> int:
        """The width of a prompt embedding."""
        return len(self.text_out_layers) * self.text_width


def _linear(name: str, inputs: int, outputs: int, *, bias: bool = False) -> Tensors:
    yield f"{name}.weight", (outputs, inputs), 1 / math.sqrt(inputs)
    if bias:
        yield f"{name}.bias", (outputs,), ZEROS


def _norm(name: str, width: int, *, bias: bool = False) -> Tensors:
    yield f"{name}.weight", (width,), ONES
    if bias:
        yield f"{name}.bias", (width,), ZEROS


def _conv(name: str, inputs: int, outputs: int, kernel: int = 3, gain: float = 1.0) -> Tensors:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel), gain / math.sqrt(inputs * kernel * kernel)
    yield f"{name}.bias", (outputs,), ZEROS


def transformer_tensors(shape: CheckpointShape) -> Tensors:
    width, mlp = shape.width, int(shape.width * shape.mlp_ratio)
    yield from _linear("x_embedder", 128, width)
    yield from _linear("context_embedder", shape.joint_attention_dim, width)
    yield from _linear("time_guidance_embed.timestep_embedder.linear_1", 256, width)
    yield from _linear("time_guidance_embed.timestep_embedder.linear_2", width, width)
    for stream in ("img", "txt"):
        yield from _linear(f"double_stream_modulation_{stream}.linear", width, 6 * width)
    yield from _linear("single_stream_modulation.linear", width, 3 * width)
    for block in range(shape.double_blocks):
        name = f"transformer_blocks.{block}"
        for layer in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            yield from _linear(f"{name}.attn.{layer}", width, width)
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            yield from _norm(f"{name}.attn.{norm}", shape.head_dim)
        for mlp_name in ("ff", "ff_context"):
            yield from _linear(f"{name}.{mlp_name}.linear_in", width, 2 * mlp)
            yield from _linear(f"{name}.{mlp_name}.linear_out", mlp, width)
    for block in range(shape.single_blocks):
        name = f"single_transformer_blocks.{block}.attn"
        yield from _linear(f"{name}.to_qkv_mlp_proj", width, 3 * width + 2 * mlp)
        yield from _linear(f"{name}.to_out", width + mlp, width)
        for norm in ("norm_q", "norm_k"):
            yield from _norm(f"{name}.{norm}", shape.head_dim)
    yield from _linear("norm_out.linear", width, 2 * width)
    yield from _linear("proj_out", width, 128)


def text_encoder_tensors(shape: CheckpointShape) -> Tensors:
    width, head, mlp = shape.text_width, shape.text_head_dim, shape.text_mlp_width
    yield "model.embed_tokens.weight", (VOCABULARY_SIZE, width), 1.0
    for index in range(shape.text_layers):
        name = f"model.layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield from _norm(f"{name}.{norm}", width)
        yield from _linear(f"{name}.self_attn.q_proj", width, shape.text_heads * head)
        yield from _linear(f"{name}.self_attn.k_proj", width, shape.text_key_value_heads * head)
        yield from _linear(f"{name}.self_attn.v_proj", width, shape.text_key_value_heads * head)
        yield from _linear(f"{name}.self_attn.o_proj", shape.text_heads * head, width)
        for norm in ("q_norm", "k_norm"):
            yield from _norm(f"{name}.self_attn.{norm}", head)
        for layer in ("gate_proj", "up_proj"):
            yield from _linear(f"{name}.mlp.{layer}", width, mlp)
        yield from _linear(f"{name}.mlp.down_proj", mlp, width)
    yield from _norm("model.norm", width)


def vae_tensors(shape: CheckpointShape) -> Tensors:
    widths, layers = shape.vae_widths, shape.vae_layers_per_block
    yield from _conv("encoder.conv_in", 3, widths[0])
    for block, width in enumerate(widths):
        name = f"encoder.down_blocks.{block}"
        for layer in range(layers):
            inputs = widths[max(block - 1, 0)] if layer == 0 else width
            yield from _resnet(f"{name}.resnets.{layer}", inputs, width)
        if block < 3:
            yield from _conv(f"{name}.downsamplers.0.conv", width, width)
    yield from _mid_block("encoder.mid_block", widths[-1])
    yield from _norm("encoder.conv_norm_out", widths[-1], bias=True)
    yield from _conv("encoder.conv_out", widths[-1], 64)
    yield from _conv("quant_conv", 64, 64, kernel=1)
    yield from _conv("post_quant_conv", 32, 32, kernel=1)
    yield from _conv("decoder.conv_in", 32, widths[-1])
    yield from _mid_block("decoder.mid_block", widths[-1])
    for block, width in enumerate(reversed(widths)):
        name = f"decoder.up_blocks.{block}"
        for layer in range(layers + 1):
            inputs = widths[min(4 - block, 3)] if layer == 0 else width
            yield from _resnet(f"{name}.resnets.{layer}", inputs, width)
        if block < 3:
            yield from _conv(f"{name}.upsamplers.0.conv", width, width)
    yield from _norm("decoder.conv_norm_out", widths[0], bias=True)
    yield from _conv("decoder.conv_out", widths[0], 3, gain=_IMAGE_GAIN)
    yield "bn.running_mean", (128,), ZEROS
    yield "bn.running_var", (128,), ONES


def _resnet(name: str, inputs: int, outputs: int) -> Tensors:
    yield from _norm(f"{name}.norm1", inputs, bias=True)
    yield from _conv(f"{name}.conv1", inputs, outputs)
    yield from _norm(f"{name}.norm2", outputs, bias=True)
    yield from _conv(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.conv_shortcut", inputs, outputs, kernel=1)


def _mid_block(name: str, width: int) -> Tensors:
    for layer in range(2):
        yield from _resnet(f"{name}.resnets.{layer}", width, width)
    yield from _norm(f"{name}.attentions.0.group_norm", width, bias=True)
    for layer_name in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from _linear(f"{name}.attentions.0.{layer_name}", width, width, bias=True)


def transformer_config(shape: CheckpointShape) -> dict[str, Any]:
    """Diffusers' Flux2Transformer2DModel."""
    return {
        "_class_name": "Flux2Transformer2DModel",
        "patch_size": 1,
        "in_channels": 128,
        "out_channels": None,
        "num_layers": shape.double_blocks,
        "num_single_layers": shape.single_blocks,
        "attention_head_dim": shape.head_dim,
        "num_attention_heads": shape.heads,
        "joint_attention_dim": shape.joint_attention_dim,
        "timestep_guidance_channels": 256,
        "mlp_ratio": shape.mlp_ratio,
        "axes_dims_rope": list(shape.axes_dims_rope),
        "rope_theta": 2000,
        "eps": 1e-6,
        "guidance_embeds": False,
    }


def vae_config(shape: CheckpointShape) -> dict[str, Any]:
    """Diffusers' AutoencoderKLFlux2."""
    return {
        "_class_name": "AutoencoderKLFlux2",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": list(shape.vae_widths),
        "layers_per_block": shape.vae_layers_per_block,
        "act_fn": "silu",
        "latent_channels": 32,
        "norm_num_groups": shape.vae_norm_groups,
        "sample_size": 1024,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
        "batch_norm_eps": 1e-4,
        "batch_norm_momentum": 0.1,
        "patch_size": [2, 2],
    }


def text_encoder_config(shape: CheckpointShape, dtype: str) -> dict[str, Any]:
    """Transformers' Qwen3Config; rope_theta stands in both places that its versions read."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": shape.text_width,
        "intermediate_size": shape.text_mlp_width,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": shape.text_heads,
        "num_key_value_heads": shape.text_key_value_heads,
        "head_dim": shape.text_head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "pad_token_id": PAD_TOKEN_ID,
        "eos_token_id": END_TOKEN_ID,
        "dtype": dtype,
    }


def model_index(shape: CheckpointShape) -> dict[str, Any]:
    """Diffusers' model_index.json, with the two call arguments that this engine reads from it."""
    return {
        "_class_name": "Flux2KleinPipeline",
        "is_distilled": shape.is_distilled,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
        OUT_LAYERS_KEY: list(shape.text_out_layers),
        SEQUENCE_LENGTH_KEY: shape.max_sequence_length,
    }


def scheduler_config() -> dict[str, Any]:
    """FLUX.2's scheduler."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "invert_sigmas": False,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "shift_terminal": None,
        "stochastic_sampling": False,
        "time_shift_type": "exponential",
        "use_beta_sigmas": False,
        "use_dynamic_shifting": True,
        "use_exponential_sigmas": False,
        "use_karras_sigmas": False,
    }

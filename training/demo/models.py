"""FLUX.2's transformer and Qwen3's text encoder in plain PyTorch, with diffusers' and transformers' parameter names.

They are written out because they are short, train fast and need no library; ``verify`` compares them with the
originals.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from mflux_api.engine.demo.layout import CheckpointShape
from training.demo.shape import VOCABULARY_SIZE

# Between two images on the first axis, as in diffusers' Flux2KleinPipeline._prepare_image_ids.
_REFERENCE_DISTANCE = 10


class TextEncoder(nn.Module):
    """Qwen3; the hidden states of its output layers, side by side, are the prompt's embedding."""

    def __init__(self, shape: CheckpointShape) -> None:
        super().__init__()
        self.out_layers = shape.text_out_layers
        self.head_dim = shape.text_head_dim
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(VOCABULARY_SIZE, shape.text_width),
                "layers": nn.ModuleList([_TextLayer(shape) for _ in range(shape.text_layers)]),
                "norm": nn.RMSNorm(shape.text_width, eps=1e-6),
            }
        )
        nn.init.normal_(self.model["embed_tokens"].weight, std=0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed token rows [n, 64], where 0 is padding, as [n, 64, output layers x width]."""
        length = tokens.shape[1]
        rope = _text_rope(length, self.head_dim, tokens.device)
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        mask = causal & (tokens != 0)[:, None, None, :]
        hidden = self.model["embed_tokens"](tokens)
        outputs = []
        for number, layer in enumerate(self.model["layers"], start=1):
            if number > max(self.out_layers):
                break
            hidden = layer(hidden, rope, mask)
            if number in self.out_layers:
                outputs.append(hidden)
        return torch.cat(outputs, dim=-1)


def _text_rope(length: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    frequencies = 1.0 / (1_000_000.0 ** (torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim))
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


class _TextLayer(nn.Module):
    def __init__(self, shape: CheckpointShape) -> None:
        super().__init__()
        width, head = shape.text_width, shape.text_head_dim
        self.heads, self.pairs, self.head = shape.text_heads, shape.text_key_value_heads, head
        self.input_layernorm = _RMSNorm(width, eps=1e-6)
        self.post_attention_layernorm = _RMSNorm(width, eps=1e-6)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": _linear(width, self.heads * head),
                "k_proj": _linear(width, self.pairs * head),
                "v_proj": _linear(width, self.pairs * head),
                "o_proj": _linear(self.heads * head, width),
                "q_norm": _RMSNorm(head, eps=1e-6),
                "k_norm": _RMSNorm(head, eps=1e-6),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": _linear(width, shape.text_mlp_width),
                "up_proj": _linear(width, shape.text_mlp_width),
                "down_proj": _linear(shape.text_mlp_width, width),
            }
        )

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        attention, mlp = self.self_attn, self.mlp
        x = self.input_layernorm(hidden)
        q = _rotate_halves(attention["q_norm"](attention["q_proj"](x).unflatten(-1, (self.heads, self.head))), rope)
        k = _rotate_halves(attention["k_norm"](attention["k_proj"](x).unflatten(-1, (self.pairs, self.head))), rope)
        v = attention["v_proj"](x).unflatten(-1, (self.pairs, self.head)).transpose(1, 2)
        repeat = self.heads // self.pairs
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        out = functional.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask)
        hidden = hidden + attention["o_proj"](out.transpose(1, 2).flatten(2))
        x = self.post_attention_layernorm(hidden)
        return hidden + mlp["down_proj"](functional.silu(mlp["gate_proj"](x)) * mlp["up_proj"](x))


def _rotate_halves(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn [n, tokens, heads, head] into [n, heads, tokens, head], rotated in halves as in Llama."""
    x = x.transpose(1, 2)
    one, two = x.chunk(2, dim=-1)
    return x * rope[0] + torch.cat([-two, one], dim=-1) * rope[1]


class Transformer(nn.Module):
    """diffusers' ``Flux2Transformer2DModel`` without guidance embedding."""

    def __init__(self, shape: CheckpointShape) -> None:
        super().__init__()
        width = shape.width
        self.axes = shape.axes_dims_rope
        self.x_embedder = _linear(128, width)
        self.context_embedder = _linear(shape.joint_attention_dim, width)
        self.time_guidance_embed = nn.ModuleDict(
            {"timestep_embedder": nn.ModuleDict({"linear_1": _linear(256, width), "linear_2": _linear(width, width)})}
        )
        self.double_stream_modulation_img = nn.ModuleDict({"linear": _linear(width, 6 * width)})
        self.double_stream_modulation_txt = nn.ModuleDict({"linear": _linear(width, 6 * width)})
        self.single_stream_modulation = nn.ModuleDict({"linear": _linear(width, 3 * width)})
        self.transformer_blocks = nn.ModuleList([_DoubleBlock(shape) for _ in range(shape.double_blocks)])
        self.single_transformer_blocks = nn.ModuleList([_SingleBlock(shape) for _ in range(shape.single_blocks)])
        self.norm_out = nn.ModuleDict({"linear": _linear(width, 2 * width)})
        self.proj_out = _linear(width, 128)
        for module in (
            self.double_stream_modulation_img["linear"],
            self.double_stream_modulation_txt["linear"],
            self.single_stream_modulation["linear"],
            self.norm_out["linear"],
            self.proj_out,
        ):
            # Every block begins as the identity (adaLN-zero, arXiv:2212.09748).
            nn.init.zeros_(module.weight)

    def forward(self, latents: Tensor, text: Tensor, sigma: Tensor, rope: Tensor) -> Tensor:
        """Predict the velocity.

        Args:
            latents: Packed latents [n, tokens, 128].
            text: Prompt embeddings [n, 64, width].
            sigma: The noise level of each image, [n], 0..1.
            rope: From ``compute_rope``.

        Returns:
            The velocity [n, tokens, 128].
        """
        embedder = self.time_guidance_embed["timestep_embedder"]
        time = embedder["linear_2"](functional.silu(embedder["linear_1"](_embed_timestep(sigma * 1000))))
        active = functional.silu(time)
        image_mod = self.double_stream_modulation_img["linear"](active)[:, None]
        text_mod = self.double_stream_modulation_txt["linear"](active)[:, None]
        single_mod = self.single_stream_modulation["linear"](active)[:, None]
        x, c = self.x_embedder(latents), self.context_embedder(text)
        for block in self.transformer_blocks:
            x, c = block(x, c, image_mod, text_mod, rope)
        x = torch.cat([c, x], dim=1)
        for block in self.single_transformer_blocks:
            x = block(x, single_mod, rope)
        x = x[:, text.shape[1] :]
        scale, shift = self.norm_out["linear"](active)[:, None].chunk(2, dim=-1)
        return self.proj_out(_modulate(x, shift, scale))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def _embed_timestep(t: Tensor) -> Tensor:
    """Embed timesteps [n] as [n, 256], as diffusers' ``Timesteps`` does."""
    exponent = torch.arange(128, device=t.device, dtype=torch.float32) / 128
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponent)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class _RMSNorm(nn.RMSNorm):
    """A norm that stays in its input's precision: autocast would move twice the memory."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return torch.addcmul(shift, functional.layer_norm(x, (x.shape[-1],), eps=1e-6), 1 + scale)


def _rotate_pairs(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate [n, tokens, heads, head] in pairs by ``turns``, complex [tokens, head / 2]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2).to(x.dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, turns: Tensor) -> Tensor:
    q, k = _rotate_pairs(q, turns), _rotate_pairs(k, turns)
    out = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return functional.silu(gate) * value


class _DoubleBlock(nn.Module):
    def __init__(self, shape: CheckpointShape) -> None:
        super().__init__()
        width, head, mlp = shape.width, shape.head_dim, int(shape.width * shape.mlp_ratio)
        self.heads = shape.heads
        layers: dict[str, nn.Module] = {
            name: _linear(width, width)
            for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        }
        layers["to_out"] = nn.ModuleList([_linear(width, width)])
        layers |= {name: _RMSNorm(head, eps=1e-6) for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")}
        self.attn = nn.ModuleDict(layers)
        self.ff = nn.ModuleDict({"linear_in": _linear(width, 2 * mlp), "linear_out": _linear(mlp, width)})
        self.ff_context = nn.ModuleDict({"linear_in": _linear(width, 2 * mlp), "linear_out": _linear(mlp, width)})

    def forward(self, x: Tensor, c: Tensor, image_mod: Tensor, text_mod: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = image_mod.chunk(6, dim=-1)
        c_shift, c_scale, c_gate, c_shift_mlp, c_scale_mlp, c_gate_mlp = text_mod.chunk(6, dim=-1)
        layers: Any = self.attn
        xn, cn = _modulate(x, shift, scale), _modulate(c, c_shift, c_scale)
        q = torch.cat([self._heads(cn, "add_q_proj", "norm_added_q"), self._heads(xn, "to_q", "norm_q")], dim=1)
        k = torch.cat([self._heads(cn, "add_k_proj", "norm_added_k"), self._heads(xn, "to_k", "norm_k")], dim=1)
        v = torch.cat([self._heads(cn, "add_v_proj"), self._heads(xn, "to_v")], dim=1)
        out = _attention(q, k, v, rope)
        text = c.shape[1]
        x = torch.addcmul(x, gate, layers["to_out"][0](out[:, text:]))
        c = torch.addcmul(c, c_gate, layers["to_add_out"](out[:, :text]))
        mlp = self.ff["linear_in"](_modulate(x, shift_mlp, scale_mlp))
        x = torch.addcmul(x, gate_mlp, self.ff["linear_out"](_swiglu(mlp)))
        mlp = self.ff_context["linear_in"](_modulate(c, c_shift_mlp, c_scale_mlp))
        return x, torch.addcmul(c, c_gate_mlp, self.ff_context["linear_out"](_swiglu(mlp)))

    def _heads(self, x: Tensor, layer: str, norm: str | None = None) -> Tensor:
        heads: Tensor = self.attn[layer](x).unflatten(-1, (self.heads, -1))
        return heads if norm is None else self.attn[norm](heads)


class _SingleBlock(nn.Module):
    def __init__(self, shape: CheckpointShape) -> None:
        super().__init__()
        width, mlp = shape.width, int(shape.width * shape.mlp_ratio)
        self.width, self.heads = width, shape.heads
        self.attn = nn.ModuleDict(
            {
                "to_qkv_mlp_proj": _linear(width, 3 * width + 2 * mlp),
                "to_out": _linear(width + mlp, width),
                "norm_q": _RMSNorm(shape.head_dim, eps=1e-6),
                "norm_k": _RMSNorm(shape.head_dim, eps=1e-6),
            }
        )

    def forward(self, x: Tensor, mod: Tensor, rope: Tensor) -> Tensor:
        shift, scale, gate = mod.chunk(3, dim=-1)
        fused = self.attn["to_qkv_mlp_proj"](_modulate(x, shift, scale))
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in fused[..., : 3 * self.width].chunk(3, dim=-1))
        out = _attention(self.attn["norm_q"](q), self.attn["norm_k"](k), v, rope)
        out = torch.cat([out, _swiglu(fused[..., 3 * self.width :])], dim=-1)
        return torch.addcmul(x, gate, self.attn["to_out"](out))


@functools.cache
def compute_rope(
    rows: int,
    columns: int,
    text: int,
    axes: tuple[int, ...],
    device: torch.device,
    references: tuple[tuple[int, int], ...] = (),
) -> Tensor:
    """Compute the turns of the rotary position embedding (arXiv:2104.09864) over FLUX.2's four axes.

    Axis 0 tells images apart (0 for the one that is made, 10, 20, ... for the references), 1 is the row, 2 the column
    and 3 the place in the text.

    Args:
        rows: Of latent patches in the image.
        columns: Of latent patches in the image.
        text: Prompt tokens.
        axes: How much of a head each axis turns.
        device: Where the turns are needed.
        references: Rows and columns of each reference.

    Returns:
        Complex numbers [text + rows x columns + those of the references, head / 2].
    """
    images = []
    for number, (high, wide) in enumerate(((rows, columns), *references)):
        ids = torch.zeros(high * wide, 4, dtype=torch.float64, device=device)
        ids[:, 0] = _REFERENCE_DISTANCE * number
        ids[:, 1] = torch.arange(high, device=device).repeat_interleave(wide)
        ids[:, 2] = torch.arange(wide, device=device).repeat(high)
        images.append(ids)
    words = torch.zeros(text, 4, dtype=torch.float64, device=device)
    words[:, 3] = torch.arange(text, device=device)
    places = torch.cat([words, *images])
    angles = []
    for axis, size in enumerate(axes):
        frequencies = 1.0 / (2000.0 ** (torch.arange(0, size, 2, dtype=torch.float64, device=device) / size))
        angles.append(torch.outer(places[:, axis], frequencies))
    both = torch.cat(angles, dim=-1)
    return torch.polar(torch.ones_like(both), both).to(torch.complex64)


Models = tuple[TextEncoder, Transformer]
"""The two models that together predict a velocity."""


def predict_velocity(
    models: Models,
    size: tuple[int, int],
    latents: Tensor,
    tokens: Tensor,
    sigma: Tensor,
    references: Sequence[Tensor] = (),
    reference_sizes: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """Predict the velocity of noised latents.

    Args:
        models: The text encoder and the transformer.
        size: Height and width of the image in pixels.
        latents: The noised latents, packed, [n, tokens, 128].
        tokens: Token rows [n, 64].
        sigma: Their noise levels [n].
        references: Clean packed latents of the references, which follow the noised ones.
        reference_sizes: Height and width of each reference in pixels.

    Returns:
        The velocity [n, tokens, 128] of the noised latents alone, in float32.
    """
    text, transformer = models
    grids = tuple((height // 16, width // 16) for height, width in reference_sizes)
    rope = compute_rope(size[0] // 16, size[1] // 16, tokens.shape[1], transformer.axes, latents.device, grids)
    found = transformer(torch.cat([latents, *references], dim=1), text(tokens), sigma, rope)
    return found[:, : latents.shape[1]].float()

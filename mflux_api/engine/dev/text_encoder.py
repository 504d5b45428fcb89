"""The language half of Mistral Small 3 on MLX, as far as an image needs it: the outputs of some of its layers.

transformers' ``MistralModel`` with its scaled-dot-product attention is the model: a padded token on the left of the
prompt sees nothing, so attention adds nothing to it, and what is left of it conditions the image too.
"""

import attrs
import mlx.core as mx
from mlx import nn


@attrs.frozen(kw_only=True)
class MistralShape:
    """The dimensions of a Mistral text model; ``layers`` counts those that are built."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float
    norm_eps: float


class MistralTextEncoder(nn.Module):
    """Token numbers to hidden states; without a final norm, because no output layer comes after it."""

    def __init__(self, shape: MistralShape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # not annotated in mlx
        self.vocab_size = shape.vocab_size
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.layers = [_Layer(shape) for _ in range(shape.layers)]

    def get_prompt_embeds(
        self, input_ids: mx.array, attention_mask: mx.array, hidden_state_layers: tuple[int, ...]
    ) -> mx.array:
        """Compute the outputs of some layers, side by side, as mflux's text encoders do.

        Args:
            input_ids: [batch, tokens].
            attention_mask: [batch, tokens], 0 for padding.
            hidden_state_layers: numbers from 1 (0 is the embedding), at most the layers built.

        Returns:
            [batch, tokens, width x number of layers], not yet computed.
        """
        seen, any_seen = _visible(attention_mask)
        hidden = self.embed_tokens(input_ids)
        outputs = [hidden]
        for layer in self.layers[: max(hidden_state_layers)]:
            hidden = layer(hidden, seen, any_seen)
            outputs.append(hidden)
        return mx.concatenate([outputs[number] for number in hidden_state_layers], axis=-1)


class _Layer(nn.Module):
    def __init__(self, shape: MistralShape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # not annotated in mlx
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.mlp = _FeedForward(shape)

    def __call__(self, x: mx.array, seen: mx.array, any_seen: mx.array) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), seen, any_seen)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Attention(nn.Module):
    def __init__(self, shape: MistralShape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # not annotated in mlx
        # A head's width is a number of its own: in Mistral Small 3 all heads together are narrower than the model.
        self._heads = (shape.heads, shape.key_value_heads, shape.key_value_heads)
        self._head_dim = shape.head_dim
        self._rope_theta = shape.rope_theta
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.key_value_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.key_value_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=False)

    def __call__(self, x: mx.array, seen: mx.array, any_seen: mx.array) -> mx.array:
        batch, tokens, _ = x.shape
        query, key, value = (
            projection(x).reshape(batch, tokens, heads, self._head_dim).transpose(0, 2, 1, 3)
            for projection, heads in zip((self.q_proj, self.k_proj, self.v_proj), self._heads, strict=True)
        )
        attended = mx.fast.scaled_dot_product_attention(
            self._rotate(query), self._rotate(key), value, scale=self._head_dim**-0.5, mask=seen
        )
        attended = mx.where(any_seen, attended, mx.zeros_like(attended))
        return self.o_proj(attended.transpose(0, 2, 1, 3).reshape(batch, tokens, -1))

    def _rotate(self, x: mx.array) -> mx.array:
        # Positions count from the first token of the row, padding included.
        return mx.fast.rope(x, self._head_dim, traditional=False, base=self._rope_theta, scale=1.0, offset=0)


class _FeedForward(nn.Module):
    def __init__(self, shape: MistralShape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # not annotated in mlx
        self.gate_proj = nn.Linear(shape.width, shape.mlp_width, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.mlp_width, bias=False)
        self.down_proj = nn.Linear(shape.mlp_width, shape.width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


def _visible(attention_mask: mx.array) -> tuple[mx.array, mx.array]:
    """Return which tokens each token sees [batch, 1, tokens, tokens], and whether it sees any [batch, 1, tokens, 1].

    A token that sees none is said to see itself: a softmax over nothing is not a number. Its result is not used.
    """
    positions = mx.arange(attention_mask.shape[1])
    earlier = positions[None, :] <= positions[:, None]
    seen = earlier[None, None] & (attention_mask != 0)[:, None, None, :]
    any_seen = mx.any(seen, axis=-1, keepdims=True)
    itself = positions[None, :] == positions[:, None]
    return seen | (~any_seen & itself[None, None]), any_seen

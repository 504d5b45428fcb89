"""One pass's denoising steps: what conditions the transformer, both branches of guidance, reference tokens."""

from collections.abc import Callable
from typing import Any

import attrs
import mlx.core as mx
from mflux.models.flux2.model.flux2_text_encoder.prompt_encoder import Flux2PromptEncoder

from mflux_api.engine.references import References

Predict = Callable[..., mx.array]
"""The transformer as a function of (tokens, position ids, embeddings, text ids, timestep), all of one batch."""


@attrs.frozen(eq=False)
class Conditioning:
    """What a pass's pictures are painted from."""

    embeddings: mx.array
    """Prompt embeddings [branches x seeds, tokens, width]: the positive rows first, then the negative ones."""
    guidance: float
    """Above 1.0 there are two branches."""
    references: References | None = None


class Denoiser:
    """Predicts the velocity of a pass's latents, step by step."""

    def __init__(self, predict: Predict, conditioning: Conditioning, ids: mx.array) -> None:
        self._predict = predict
        self._conditioning = conditioning
        self._text_ids = Flux2PromptEncoder.prepare_text_ids(conditioning.embeddings[:1])
        references = conditioning.references
        # The painted picture's own tokens come first, as in mflux and diffusers.
        self._ids = ids if references is None else mx.concatenate([ids, references.ids], axis=1)

    def velocity(self, latents: mx.array, timestep: mx.array) -> mx.array:
        """The velocity of packed latents [seeds, tokens, 128] at a timestep from 0 to 1000; not yet computed."""
        guidance = self._conditioning.guidance
        # Both branches of classifier-free guidance (Ho & Salimans, arXiv:2207.12598) share one batch.
        rows = mx.concatenate([latents, latents], axis=0) if guidance > 1.0 else latents
        tokens = self._with_references(rows)
        velocity = self._predict(tokens, self._ids, self._conditioning.embeddings, self._text_ids, timestep)
        velocity = velocity[:, : latents.shape[1]]
        if guidance <= 1.0:
            return velocity
        positive, negative = mx.split(velocity, 2, axis=0)
        guided: mx.array = negative + guidance * (positive - negative)
        return guided

    def _with_references(self, rows: mx.array) -> mx.array:
        references = self._conditioning.references
        if references is None:
            return rows
        tokens = mx.broadcast_to(references.tokens, (rows.shape[0], *references.tokens.shape[1:]))
        return mx.concatenate([rows, tokens], axis=1)


def mixed(start: mx.array, noise: mx.array, sigma: mx.array) -> mx.array:
    """Where the flow from ``start`` to each row of ``noise`` is at ``sigma``: (1 - sigma) start + sigma noise."""
    share = sigma.astype(noise.dtype)
    latents: mx.array = (1 - share) * start.astype(noise.dtype) + share * noise
    return latents


def transformer_function(transformer: Any) -> Predict:
    """mflux's ``Flux2Transformer`` as a plain function."""

    def predict(
        latents: mx.array, ids: mx.array, embeddings: mx.array, text_ids: mx.array, timestep: mx.array
    ) -> mx.array:
        velocity: mx.array = transformer(
            hidden_states=latents,
            encoder_hidden_states=embeddings,
            timestep=timestep,
            img_ids=ids,
            txt_ids=text_ids,
            guidance=None,
        )
        return velocity

    return predict
